"""Questions on the same images: what the prompts begin with goes through the decoder once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from midsight.extraction.prefill import PaddedRows, Prefill, continue_prefill, pad_rows, prefill
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import PaddingSide
from midsight.models.adapter import EncodedImage
from midsight.models.layout import Span, TokenLayout
from midsight.models.loading import LoadedModel
from midsight.taps.tap import Tap


@dataclass(frozen=True)
class SharedPrefixes:
    """The prefixes of a group of samples, each prompt up to its last image token, and who goes on from which."""

    first: tuple[int, ...]
    """Of each distinct prefix, the first sample of the group that has it."""
    owners: tuple[int, ...]
    """Of each sample, its prefix."""


def find_shared(model: LoadedModel, group: Sequence[PreparedSample]) -> SharedPrefixes | None:
    """The prefixes that samples of one longrope regime share; None where none is, or where none may be.

    Prefixes are the same where their tokens and their images are: states at those tokens do not depend on
    the question then. A prefix that alone would fall into the other regime is not shared.
    """
    border = model.adapter.longrope_border(model.config)
    numbers: dict[object, int] = {}
    first, owners = [], []
    for index, item in enumerate(group):
        token_ids, cut = item.prompt.token_ids, prefix_length(item)
        if border is not None and cut <= border < len(token_ids):
            return None
        key = prefix_key(item)
        if key not in numbers:
            numbers[key] = len(numbers)
            first.append(index)
        owners.append(numbers[key])
    return SharedPrefixes(tuple(first), tuple(owners)) if len(first) < len(group) else None


def prefix_key(item: PreparedSample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What prompts of one prefix have in common: their tokens up to the last image token, and their images."""
    return item.prompt.token_ids[: prefix_length(item)], tuple(map(id, item.images))


def prefix_length(item: PreparedSample) -> int:
    """Tokens of a prompt up to its last image token, that one among them."""
    return item.prompt.layout.vision_token + 1


def prefill_shared(
    model: LoadedModel,
    group: Sequence[PreparedSample],
    images: Sequence[Sequence[EncodedImage]],
    shared: SharedPrefixes,
    taps: Sequence[Tap],
    side: PaddingSide,
) -> Prefill:
    """What prefill gives for the group: every prefix once, then every question on its prefix."""
    at_end = [tap for tap in taps if tap.position == "query_token"]
    in_prefix = [tap for tap in taps if tap.position != "query_token"]
    prefixes = pad_prefixes(model, [group[i] for i in shared.first], side)
    begun = prefill(model, prefixes, [images[i] for i in shared.first], in_prefix, keep_cache=True)
    filled = continue_prefill(model, begun, pad_rests(model, group, shared.owners), at_end)
    owner = torch.tensor(shared.owners, device=model.device)
    return replace(filled, states={**filled.states, **{tap: begun.states[tap][owner] for tap in in_prefix}})


def pad_prefixes(model: LoadedModel, items: Sequence[PreparedSample], side: PaddingSide) -> PaddedRows:
    """What prompts begin with, up to their last image token."""
    cuts = [prefix_length(item) for item in items]
    layouts = [
        replace(item.prompt.layout, prompt=Span(0, cut), question=Span(0, 0))
        for item, cut in zip(items, cuts, strict=True)
    ]
    return pad_rows(
        [item.prompt.token_ids[:cut] for item, cut in zip(items, cuts, strict=True)],
        layouts,
        [item.positions[:, :cut] for item, cut in zip(items, cuts, strict=True)],
        pad_id=model.pad_id,
        side=side,
        device=model.device,
    )


def pad_rests(model: LoadedModel, items: Sequence[PreparedSample], rows: Sequence[int]) -> PaddedRows:
    """What follows after the last image token, each in the row of its prefix."""
    rests = [item.prompt.token_ids[prefix_length(item) :] for item in items]
    return pad_rows(
        rests,
        [TokenLayout(Span(0, len(rest)), image=(), question=Span(0, 0)) for rest in rests],
        [item.positions[:, prefix_length(item) :] for item in items],
        pad_id=model.pad_id,
        side="right",
        device=model.device,
        rows=rows,
    )

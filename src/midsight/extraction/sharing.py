"""Questions on the same images: their common prefix goes through the decoder once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.calls import Call
from midsight.extraction.prefill import PaddedRows, Prefill, continue_prefill, pad_rows, prefill
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import PaddingSide
from midsight.families.inputs import EncodedImage
from midsight.prompts.token_layout import Span, TokenLayout
from midsight.taps.tap import Tap


def prefill_shared(
    model: LoadedModel,
    call: Call,
    images: Sequence[Sequence[EncodedImage]],
    taps: Sequence[Tap],
    side: PaddingSide,
) -> Prefill:
    """The prefill of a call's samples: every prefix once, then every question on its prefix.

    `images` holds the images of each sample, in the order of the call.
    """
    at_end = [tap for tap in taps if tap.position == "query_token"]
    in_prefix = [tap for tap in taps if tap.position != "query_token"]
    items, row_numbers = call.items, call.row_numbers
    firsts = [row_numbers.index(number) for number in range(len(call.rows))]
    prefixes = pad_prefixes(model, [items[first] for first in firsts], side)
    begun = prefill(model, prefixes, [images[first] for first in firsts], in_prefix, keep_cache=True)
    filled = continue_prefill(model, begun, pad_suffixes(model, items, row_numbers), at_end)
    of_sample = torch.tensor(row_numbers)  # on the CPU, because layers may be on several devices
    return replace(filled, states={**filled.states, **{tap: begun.states[tap][of_sample] for tap in in_prefix}})


def pad_prefixes(model: LoadedModel, items: Sequence[PreparedSample], side: PaddingSide) -> PaddedRows:
    """The prefixes of prompts, one row each."""
    layouts = [replace(item.prompt.layout, prompt=Span(0, item.prefix_length), question=Span(0, 0)) for item in items]
    return pad_rows(
        [item.prompt.token_ids[: item.prefix_length] for item in items],
        layouts,
        [item.positions[:, : item.prefix_length] for item in items],
        pad_id=model.pad_id,
        side=side,
        device=model.device,
    )


def pad_suffixes(model: LoadedModel, items: Sequence[PreparedSample], rows: Sequence[int]) -> PaddedRows:
    """The tokens after each prompt's prefix, in its row."""
    suffixes = [item.prompt.token_ids[item.prefix_length :] for item in items]
    return pad_rows(
        suffixes,
        [TokenLayout(Span(0, len(suffix)), image=(), question=Span(0, 0)) for suffix in suffixes],
        [item.positions[:, item.prefix_length :] for item in items],
        pad_id=model.pad_id,
        side="right",
        device=model.device,
        rows=rows,
    )

"""The one pass over prompts: vision encoder, decoder, taps, and the first token's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from midsight.extraction.request import PaddingSide
from midsight.models.adapter import EncodedImage, ImageInputs, KVCache, encode_images, submodule
from midsight.models.layout import TokenLayout
from midsight.models.loading import LoadedModel
from midsight.taps.capture import capture
from midsight.taps.tap import Tap

SHARED, NOBODY = -1, -2
"""Owners of a token that all prompts of its row read, and of padding."""


@dataclass(frozen=True)
class PaddedRows:
    """Token ids of several prompts, or of what is left of them, as one rectangle."""

    token_ids: Tensor
    """int64 [rows, tokens]."""
    owners: Tensor
    """int64 [rows, tokens]: which prompt a token belongs to, NOBODY on padding."""
    position_ids: Tensor
    """int64 [rows, tokens], or [axes, rows, tokens] where a token has several; 0 on padding."""
    position_offsets: tuple[int, ...]
    """Of each prompt: position of the token that would come next, less the number of its tokens."""
    layouts: tuple[TokenLayout, ...]
    """Of each prompt, in its padded row."""
    rows: tuple[int, ...]
    """Of each prompt, the row it lies in."""
    ends: tuple[int, ...]
    """Of each prompt, the index of its last token in that row."""


@dataclass(frozen=True)
class Prefill:
    """A batch after its prompts went through."""

    states: dict[Tap, Tensor]
    """float32 [prompts, hidden size] by tap."""
    end_states: Tensor
    """Model dtype [prompts, hidden size]: each prompt's last token after the final norm."""
    cache: KVCache | None
    """Keys and values of every layer, a row for each of `owners`; None where it was not to be kept."""
    later: Mapping[str, Tensor]
    """What every later call on the cache takes beside its tokens, rows first."""
    owners: Tensor
    """int64 [rows, tokens in the cache]: whose each token is, SHARED, or NOBODY's."""
    rows: tuple[int, ...]
    """Of each prompt, its row in the cache."""
    lengths: tuple[int, ...]
    """Tokens of each prompt, padding not counted."""
    position_offsets: tuple[int, ...]
    """Of each prompt: position of its next token, less its tokens."""


def pad_rows(
    prompts: Sequence[Sequence[int]],
    layouts: Sequence[TokenLayout],
    positions: Sequence[Tensor],
    *,
    pad_id: int,
    side: PaddingSide,
    device: torch.device,
    rows: Sequence[int] | None = None,
    names: Sequence[int] | None = None,
) -> PaddedRows:
    """Lays prompts into rows filled to one length; `positions` are those of each prompt, [axes, tokens].

    rows: of each prompt the row it lies in, behind the prompts before it; a row each by default.
    names: what each prompt is called as an owner of tokens; its index by default.
    """
    rows = range(len(prompts)) if rows is None else rows
    names = range(len(prompts)) if names is None else names
    used = [0] * (max(rows) + 1)
    starts = []
    for row, prompt in zip(rows, prompts, strict=True):
        starts.append(used[row])
        used[row] += len(prompt)
    length = max(used)
    if side == "left":
        starts = [start + length - used[row] for row, start in zip(rows, starts, strict=True)]
    token_ids = torch.full((len(used), length), pad_id)
    owners = torch.full((len(used), length), NOBODY)
    position_ids = torch.zeros((len(positions[0]), len(used), length), dtype=torch.int64)
    for index, (row, start, prompt) in enumerate(zip(rows, starts, prompts, strict=True)):
        place = slice(start, start + len(prompt))
        token_ids[row, place] = torch.tensor(prompt)
        owners[row, place] = names[index]
        position_ids[:, row, place] = positions[index]
    return PaddedRows(
        token_ids=token_ids.to(device),
        owners=owners.to(device),
        position_ids=(position_ids[0] if len(position_ids) == 1 else position_ids).to(device),
        position_offsets=tuple(int(p.max()) + 1 - len(ids) for p, ids in zip(positions, prompts, strict=True)),
        layouts=tuple(layout.shifted(start) for layout, start in zip(layouts, starts, strict=True)),
        rows=tuple(rows),
        ends=tuple(start + len(ids) - 1 for start, ids in zip(starts, prompts, strict=True)),
    )


def encode_distinct(model: LoadedModel, images: Sequence[Sequence[ImageInputs]]) -> list[list[EncodedImage]]:
    """Every row's images after the vision encoder; an image shared by rows is encoded once."""
    distinct = {id(image): image for row in images for image in row}
    encoded = encode_images(model.hf_model, model.adapter, list(distinct.values()))
    by_id = dict(zip(distinct, encoded, strict=True))
    return [[by_id[id(image)] for image in row] for row in images]


def prefill(
    model: LoadedModel,
    padded: PaddedRows,
    images: Sequence[Sequence[EncodedImage]],
    taps: Sequence[Tap],
    *,
    keep_cache: bool,
) -> Prefill:
    """Runs the decoder once over whole prompts, one a row; keeps the tapped states and what decoding goes on from."""
    inputs = model.adapter.decoder_inputs(model.hf_model, padded.token_ids, padded.layouts, images)
    mask = padded.owners != NOBODY
    if all(layout.prompt.start == 0 for layout in padded.layouts):  # causal attention reads no padding that comes later
        mask = torch.ones_like(mask)
    with capture(model.hf_model, model.adapter, taps, padded.layouts, padded.rows) as states:
        output: Any = submodule(model.hf_model, model.adapter.decoder)(
            **inputs.prefill,
            attention_mask=mask.long(),
            position_ids=padded.position_ids,
            use_cache=keep_cache,
        )
    return Prefill(
        states=states,
        end_states=end_states(output, padded),
        cache=output.past_key_values if keep_cache else None,
        later=inputs.later,
        owners=padded.owners,
        rows=padded.rows,
        lengths=tuple(len(layout.prompt) for layout in padded.layouts),
        position_offsets=padded.position_offsets,
    )


def continue_prefill(model: LoadedModel, begun: Prefill, rest: PaddedRows, taps: Sequence[Tap]) -> Prefill:
    """Runs what is left of several prompts on the cache of what they begin with, and keeps the cache.

    The rows of `rest` are those of `begun`, and all that lie in one go on from the same beginning, which stays one
    row of the cache. `taps` read positions of the rest. Raises ValueError where `begun` kept no cache.
    """
    if begun.cache is None:
        raise ValueError("This prefill kept no cache to go on from; call prefill with keep_cache.")
    before = torch.where(begun.owners == NOBODY, NOBODY, SHARED)
    with capture(model.hf_model, model.adapter, taps, rest.layouts, rest.rows) as states:
        output = run_on_cache(model, begun.cache, before, rest, begun.later)
    past = [begun.lengths[row] for row in rest.rows]
    return Prefill(
        states=states,
        end_states=end_states(output, rest),
        cache=begun.cache,
        later=begun.later,
        owners=torch.cat([before, rest.owners], dim=1),
        rows=rest.rows,
        lengths=tuple(n + len(layout.prompt) for n, layout in zip(past, rest.layouts, strict=True)),
        position_offsets=tuple(offset - n for n, offset in zip(past, rest.position_offsets, strict=True)),
    )


def run_on_cache(
    model: LoadedModel, cache: KVCache, before: Tensor, more: PaddedRows, later: Mapping[str, Tensor]
) -> Any:
    """The decoder over `more` tokens behind those of the cache, whose owners are `before` [rows, tokens].

    A token reads those of its own prompt and the shared ones, up to itself.
    """
    if len(more.rows) == len(more.owners):
        # Over past and new tokens: a mask of the new ones alone corrupts without a word.
        attention_mask = (torch.cat([before, more.owners], dim=1) != NOBODY).long()
    else:
        attention_mask = _own_and_shared(before, more.owners, model.dtype)
    return submodule(model.hf_model, model.adapter.decoder)(
        input_ids=more.token_ids,
        attention_mask=attention_mask,
        position_ids=more.position_ids,
        past_key_values=cache,
        use_cache=True,
        **later,
    )


def _own_and_shared(before: Tensor, new: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention of the `new` tokens: 0 where they read, else the dtype's smallest number.

    [rows, 1, new tokens, all tokens]. The beginning is read on padding too, since a softmax over nothing is no number.
    """
    owners = torch.cat([before, new], dim=1)
    reads = (owners[:, None] == SHARED) | (owners[:, None] == new[..., None])
    reads &= torch.ones(reads.shape[1:], dtype=torch.bool, device=reads.device).tril(before.shape[1])
    mask = torch.zeros(reads.shape, dtype=dtype, device=reads.device)
    return mask.masked_fill(~reads, torch.finfo(dtype).min)[:, None]


def end_states(output: Any, padded: PaddedRows) -> Tensor:
    """Of the decoder's output, the state of each prompt's last token after the final norm, [prompts, hidden size]."""
    return output.last_hidden_state[list(padded.rows), list(padded.ends)]

"""The one pass over prompts: vision encoder, decoder, taps, and the first token's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from midsight.extraction.request import PaddingSide
from midsight.models.adapter import EncodedImage, ImageInputs, KVCache, encode_images, submodule
from midsight.models.layout import TokenLayout
from midsight.models.loading import LoadedModel
from midsight.taps.capture import capture
from midsight.taps.tap import Tap


@dataclass(frozen=True)
class PaddedRows:
    """Token ids of several prompts as one rectangle."""

    token_ids: Tensor
    """int64 [batch, tokens]."""
    attention_mask: Tensor
    """int64 [batch, tokens], 0 on padding."""
    position_ids: Tensor
    """int64 [batch, tokens], or [axes, batch, tokens] where a token has several; 0 on padding."""
    position_offsets: tuple[int, ...]
    """Of each row: position of the token that would come next, less the number of its tokens."""
    layouts: tuple[TokenLayout, ...]
    """Of the padded rows."""


@dataclass(frozen=True)
class Prefill:
    """A batch after its prompts went through."""

    states: dict[Tap, Tensor]
    """float32 [batch, hidden size] by tap."""
    end_states: Tensor
    """Model dtype [batch, hidden size]: each prompt's last token after the final norm."""
    cache: KVCache | None
    """Keys and values of every layer; None where no answers were asked for."""
    later: Mapping[str, Tensor]
    """What every later call on the cache takes beside its tokens, batch first."""
    attention_mask: Tensor
    """int64 [batch, tokens in the cache], 0 on padding."""
    lengths: tuple[int, ...]
    """Tokens of each row, padding not counted."""
    position_offsets: tuple[int, ...]
    """Of each row: position of its next token, less its tokens."""


def pad_rows(
    rows: Sequence[Sequence[int]],
    layouts: Sequence[TokenLayout],
    positions: Sequence[Tensor],
    *,
    pad_id: int,
    side: PaddingSide,
    device: torch.device,
) -> PaddedRows:
    """Fills all rows to the longest one's length; `positions` are those of each row, [axes, tokens]."""
    length = max(map(len, rows))
    token_ids = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    position_ids = torch.zeros((len(positions[0]), len(rows), length), dtype=torch.int64)
    offsets = [length - len(row) if side == "left" else 0 for row in rows]
    for index, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        token_ids[index, offset : offset + len(row)] = torch.tensor(row)
        attention_mask[index, offset : offset + len(row)] = 1
        position_ids[:, index, offset : offset + len(row)] = positions[index]
    return PaddedRows(
        token_ids=token_ids.to(device),
        attention_mask=attention_mask.to(device),
        position_ids=(position_ids[0] if len(position_ids) == 1 else position_ids).to(device),
        position_offsets=tuple(int(p.max()) + 1 - len(row) for p, row in zip(positions, rows, strict=True)),
        layouts=tuple(layout.shifted(offset) for layout, offset in zip(layouts, offsets, strict=True)),
    )


def encode_distinct(model: LoadedModel, images: Sequence[Sequence[ImageInputs]]) -> list[list[EncodedImage]]:
    """Every row's images after the vision encoder; an image shared by rows is encoded once."""
    distinct = {id(image): image for row in images for image in row}
    encoded = encode_images(model.hf_model, model.adapter, list(distinct.values()))
    by_id = dict(zip(distinct, encoded, strict=True))
    return [[by_id[id(image)] for image in row] for row in images]


def prefill(
    model: LoadedModel,
    rows: PaddedRows,
    images: Sequence[Sequence[EncodedImage]],
    taps: Sequence[Tap],
    *,
    keep_cache: bool,
) -> Prefill:
    """Runs the decoder once over whole prompts and keeps the tapped states and what decoding goes on from."""
    decoder = submodule(model.hf_model, model.adapter.decoder)
    inputs = model.adapter.decoder_inputs(model.hf_model, rows.token_ids, rows.layouts, images)
    with capture(model.hf_model, model.adapter, taps, rows.layouts) as states:
        output = decoder(
            **inputs.prefill,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            use_cache=keep_cache,
        )
    ends = [layout.query_token for layout in rows.layouts]
    return Prefill(
        states=states,
        end_states=output.last_hidden_state[range(len(ends)), ends],
        cache=output.past_key_values if keep_cache else None,
        later=inputs.later,
        attention_mask=rows.attention_mask,
        lengths=tuple(len(layout.prompt) for layout in rows.layouts),
        position_offsets=rows.position_offsets,
    )


def continue_prefill(
    model: LoadedModel, begun: Prefill, owners: Sequence[int], rest: PaddedRows, taps: Sequence[Tap]
) -> Prefill:
    """Runs the rest of several prompts on the cache of what they begin with, and keeps the cache.

    `owners` names for each row of `rest` the row of `begun` that it goes on from; `taps` read positions of
    the rest. The cache of `begun` is used up. Raises ValueError where it kept none.
    """
    if begun.cache is None:
        raise ValueError("This prefill kept no cache to go on from; call prefill with keep_cache.")
    owner = torch.tensor(owners, device=begun.attention_mask.device)
    begun.cache.batch_select_indices(owner)
    later = {name: value[owner] for name, value in begun.later.items()}
    # Over past and new tokens: a mask of the new ones alone corrupts without a word.
    attention_mask = torch.cat([begun.attention_mask[owner], rest.attention_mask], dim=1)
    with capture(model.hf_model, model.adapter, taps, rest.layouts) as states:
        output = submodule(model.hf_model, model.adapter.decoder)(
            input_ids=rest.token_ids,
            attention_mask=attention_mask,
            position_ids=rest.position_ids,
            past_key_values=begun.cache,
            use_cache=True,
            **later,
        )
    ends = [layout.query_token for layout in rest.layouts]
    before = [begun.lengths[owner] for owner in owners]
    return Prefill(
        states=states,
        end_states=output.last_hidden_state[range(len(ends)), ends],
        cache=begun.cache,
        later=later,
        attention_mask=attention_mask,
        lengths=tuple(past + len(layout.prompt) for past, layout in zip(before, rest.layouts, strict=True)),
        position_offsets=tuple(o - past for past, o in zip(before, rest.position_offsets, strict=True)),
    )

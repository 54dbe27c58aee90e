"""The one pass over prompts: vision encoder, decoder, taps, and the first token's logits."""

from __future__ import annotations

from collections.abc import Sequence
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
    """int64 [batch, tokens], counted over real tokens; 0 on padding before the prompt."""
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
    rows: PaddedRows
    """The prompts."""


def pad_rows(
    rows: Sequence[Sequence[int]],
    layouts: Sequence[TokenLayout],
    *,
    pad_id: int,
    side: PaddingSide,
    device: torch.device,
) -> PaddedRows:
    """Fills all rows to the longest one's length."""
    length = max(map(len, rows))
    token_ids = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    offsets = [length - len(row) if side == "left" else 0 for row in rows]
    for index, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        token_ids[index, offset : offset + len(row)] = torch.tensor(row)
        attention_mask[index, offset : offset + len(row)] = 1
    return PaddedRows(
        token_ids=token_ids.to(device),
        attention_mask=attention_mask.to(device),
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0).to(device),
        layouts=tuple(layout.shifted(offset) for layout, offset in zip(layouts, offsets, strict=True)),
    )


def encode_distinct(model: LoadedModel, images: Sequence[Sequence[ImageInputs]]) -> list[list[EncodedImage]]:
    """Every row's images after the vision encoder; an image shared by rows is encoded once."""
    distinct = {id(image): image for row in images for image in row}
    encoded = encode_images(model.hf_model, model.adapter, list(distinct.values()))
    by_id = dict(zip(distinct, encoded, strict=True))
    return [[by_id[id(image)] for image in row] for row in images]


def embed(model: LoadedModel, rows: PaddedRows, images: Sequence[Sequence[EncodedImage]]) -> Tensor:
    """What enters layer 0: token embeddings, those of image tokens replaced by the images.

    Model dtype [batch, tokens, hidden size].
    """
    embeddings = model.hf_model.get_input_embeddings()(rows.token_ids)
    for row, layout in enumerate(rows.layouts):
        indices = torch.from_numpy(layout.image_indices()).to(embeddings.device)
        embeddings[row, indices] = torch.cat([image.embeddings for image in images[row]])
    return embeddings


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
    with capture(model.hf_model, model.adapter, taps, rows.layouts) as states:
        output = decoder(
            inputs_embeds=embed(model, rows, images),
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            use_cache=keep_cache,
        )
    ends = [layout.query_token for layout in rows.layouts]
    return Prefill(
        states=states,
        end_states=output.last_hidden_state[range(len(ends)), ends],
        cache=output.past_key_values if keep_cache else None,
        rows=rows,
    )

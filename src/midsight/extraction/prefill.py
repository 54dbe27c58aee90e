"""The one pass over prompts: vision encoder, decoder, taps, and the first token's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.attention import PADDING, SHARED, make_image_mask, make_mask
from midsight.extraction.request import PaddingSide
from midsight.families.family import decoder_layers, encode_images
from midsight.families.grouped_attention import grouped_attention
from midsight.families.growing_cache import growing_cache, put_rows
from midsight.families.inputs import EncodedImage, ImageInputs, KVCache
from midsight.prompts.token_layout import TokenLayout
from midsight.taps.capture import capture
from midsight.taps.tap import Tap

SLICE_TOKENS = 512
"""Tokens for each thread of a CPU that go through the decoder together. With more, what a layer leaves no longer stays
in the processor's cache until the next step reads it."""


@dataclass(frozen=True)
class PaddedRows:
    """Token ids of several prompts, or of their suffixes, as one rectangle."""

    token_ids: Tensor
    """int64 [rows, tokens]."""
    prompt_ids: Tensor
    """int64 [rows, tokens]: which prompt a token belongs to, PADDING on padding."""
    position_ids: Tensor
    """int64 [rows, tokens], or [axes, rows, tokens] if a token has several positions; 0 on padding."""
    position_offsets: tuple[int, ...]
    """Per prompt: next position id minus prompt length."""
    layouts: tuple[TokenLayout, ...]
    """Per prompt, in its padded row."""
    rows: tuple[int, ...]
    """Per prompt: the row it lies in."""
    ends: Tensor
    """int64 [2, prompts]: row and index of each prompt's last token."""

    def part(self, start: int, stop: int) -> PaddedRows:
        """Some of the rows; every prompt must have a row of its own."""
        return PaddedRows(
            token_ids=self.token_ids[start:stop],
            prompt_ids=self.prompt_ids[start:stop],
            position_ids=self.position_ids[..., start:stop, :],
            position_offsets=self.position_offsets[start:stop],
            layouts=self.layouts[start:stop],
            rows=tuple(range(stop - start)),
            ends=self.ends[:, start:stop] - torch.tensor([[start], [0]], device=self.ends.device),
        )


@dataclass(frozen=True)
class Prefill:
    """A batch after prefill."""

    states: dict[Tap, Tensor]
    """float32 [prompts, hidden size] by tap."""
    end_states: Tensor
    """Model dtype [prompts, hidden size]: each prompt's last token after the final norm."""
    cache: KVCache | None
    """Keys and values of every layer, one row per row of `prompt_ids`; None if it was not kept."""
    later: Mapping[str, Tensor]
    """What every later call on the cache takes in addition to its tokens; the first dimension is the row."""
    prompt_ids: Tensor
    """int64 [rows, tokens in the cache]: the prompt that each token belongs to, SHARED, or PADDING."""
    rows: tuple[int, ...]
    """Per prompt: its row in the cache."""
    lengths: tuple[int, ...]
    """Tokens of each prompt, padding not counted."""
    position_offsets: tuple[int, ...]
    """Per prompt: next position id minus prompt length."""


def pad_rows(
    prompts: Sequence[Sequence[int]],
    layouts: Sequence[TokenLayout],
    positions: Sequence[Tensor],
    *,
    pad_id: int,
    side: PaddingSide,
    device: torch.device,
    rows: Sequence[int] | None = None,
    ids: Sequence[int] | None = None,
) -> PaddedRows:
    """Puts prompts into rows and pads the rows to one length; `positions` are those of each prompt, [axes, tokens].

    All that goes to the device goes before the model runs, because a copy in between would wait for the model.

    rows: per prompt its row; prompts in one row follow each other. By default every prompt has its own row.
    ids: per prompt its id in `prompt_ids`; its index by default.
    """
    rows = range(len(prompts)) if rows is None else rows
    ids = range(len(prompts)) if ids is None else ids
    used = [0] * (max(rows) + 1)
    starts = []
    for row, prompt in zip(rows, prompts, strict=True):
        starts.append(used[row])
        used[row] += len(prompt)
    length = max(used)
    if side == "left":
        starts = [start + length - used[row] for row, start in zip(rows, starts, strict=True)]
    token_ids = torch.full((len(used), length), pad_id)
    prompt_ids = torch.full((len(used), length), PADDING)
    position_ids = torch.zeros((len(positions[0]), len(used), length), dtype=torch.int64)
    for index, (row, start, prompt) in enumerate(zip(rows, starts, prompts, strict=True)):
        place = slice(start, start + len(prompt))
        token_ids[row, place] = torch.tensor(prompt)
        prompt_ids[row, place] = ids[index]
        position_ids[:, row, place] = positions[index]
    return PaddedRows(
        token_ids=token_ids.to(device),
        prompt_ids=prompt_ids.to(device),
        position_ids=(position_ids[0] if len(position_ids) == 1 else position_ids).to(device),
        position_offsets=tuple(int(p.max()) + 1 - len(tokens) for p, tokens in zip(positions, prompts, strict=True)),
        layouts=tuple(layout.shifted(start) for layout, start in zip(layouts, starts, strict=True)),
        rows=tuple(rows),
        ends=torch.tensor(
            [[*rows], [start + len(tokens) - 1 for start, tokens in zip(starts, prompts, strict=True)]]
        ).to(device),
    )


def encode_distinct(model: LoadedModel, images: Sequence[Sequence[ImageInputs]]) -> list[list[EncodedImage]]:
    """Every row's images after the vision encoder; an image shared by rows is encoded once."""
    distinct = {id(image): image for row in images for image in row}
    encoded = encode_images(model.hf_model, model.family, list(distinct.values()))
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
    """Runs the decoder over whole prompts, one per row; keeps the tapped states and what decoding needs.

    Raises ValueError if there is padding after a prompt, and the model keeps a state, which that would change.
    """
    if model.keeps_state and any(layout.prompt.stop < padded.token_ids.shape[1] for layout in padded.layouts):
        raise ValueError(f"{model.family.name} keeps a state of the tokens before, so pad its prompts on the left.")
    rows, at_once = len(padded.rows), rows_at_once(model, padded)
    if at_once >= rows:
        return prefill_together(model, padded, images, taps, keep_cache=keep_cache)
    cache = growing_cache(model.config) if keep_cache else None
    slices: list[Prefill] = []
    for start in range(0, rows, at_once):
        stop = min(start + at_once, rows)
        part = prefill_together(model, padded.part(start, stop), images[start:stop], taps, keep_cache=keep_cache)
        if cache is not None and part.cache is not None:
            put_rows(cache, part.cache, start, rows)
        slices.append(replace(part, cache=None))
    return Prefill(
        states={tap: torch.cat([part.states[tap] for part in slices]) for tap in slices[0].states},
        end_states=torch.cat([part.end_states for part in slices]),
        cache=cache,
        later={name: torch.cat([part.later[name] for part in slices]) for name in slices[0].later},
        prompt_ids=padded.prompt_ids,
        rows=padded.rows,
        lengths=tuple(length for part in slices for length in part.lengths),
        position_offsets=padded.position_offsets,
    )


def rows_at_once(model: LoadedModel, padded: PaddedRows) -> int:
    """How many rows of whole prompts go through the decoder together: few on a CPU that holds the weights in memory."""
    rows, tokens = padded.token_ids.shape
    layers = decoder_layers(model.hf_model, model.family)
    on_cpu = all(weight.device.type == "cpu" for layer in layers for weight in layer.parameters())
    if not on_cpu or model.keeps_state or model.family.decoder.pads_images:
        return rows
    return max(1, int(SLICE_TOKENS * torch.get_num_threads() / tokens))


def prefill_together(
    model: LoadedModel,
    padded: PaddedRows,
    images: Sequence[Sequence[EncodedImage]],
    taps: Sequence[Tap],
    *,
    keep_cache: bool,
) -> Prefill:
    """Runs the decoder once over rows of whole prompts."""
    inputs = model.family.decoder.inputs(model.hf_model, padded.token_ids, padded.layouts, images)
    decoder = model.hf_model.get_submodule(model.family.modules.decoder)
    cache_name = name_of_cache(decoder)
    cache = growing_cache(model.config) if keep_cache else None
    with capture(model.hf_model, model.family, taps, padded.layouts, padded.rows) as states:
        output: Any = decoder(
            **inputs.prefill,
            attention_mask=prompt_mask(model, padded),
            position_ids=padded.position_ids,
            **{cache_name: cache},
            use_cache=keep_cache,
        )
    return Prefill(
        states=states,
        end_states=end_states(output, padded),
        cache=getattr(output, cache_name) if keep_cache else None,
        later=inputs.later,
        prompt_ids=padded.prompt_ids,
        rows=padded.rows,
        lengths=tuple(len(layout.prompt) for layout in padded.layouts),
        position_offsets=padded.position_offsets,
    )


def prompt_mask(model: LoadedModel, padded: PaddedRows) -> Tensor | dict[str, Tensor]:
    """The attention mask of whole prompts, one per row."""
    declared = model.family.decoder
    if declared.images_read_ahead:
        blocks = declared.blocks(model.config, padded.token_ids, padded.layouts)
        return make_image_mask(model, padded.prompt_ids, blocks)
    mask = padded.prompt_ids != PADDING
    if all(layout.prompt.start == 0 for layout in padded.layouts):  # causal attention never reads later padding
        mask = torch.ones_like(mask)
    return mask.long()


def continue_prefill(model: LoadedModel, prefixes: Prefill, suffixes: PaddedRows, taps: Sequence[Tap]) -> Prefill:
    """Runs the suffixes of several prompts on the cache of their prefixes, and keeps the cache.

    The rows of `suffixes` are those of `prefixes`; all suffixes in one row continue the same prefix, which stays one
    row of the cache. `taps` read positions of the suffixes. Raises ValueError if `prefixes` kept no cache.
    """
    if prefixes.cache is None:
        raise ValueError("This prefill kept no cache to continue from; call prefill with keep_cache.")
    before = torch.where(prefixes.prompt_ids == PADDING, PADDING, SHARED)
    with capture(model.hf_model, model.family, taps, suffixes.layouts, suffixes.rows) as states:
        output = run_on_cache(model, prefixes.cache, before, suffixes, prefixes.later)
    past = [prefixes.lengths[row] for row in suffixes.rows]
    return Prefill(
        states=states,
        end_states=end_states(output, suffixes),
        cache=prefixes.cache,
        later=prefixes.later,
        prompt_ids=torch.cat([before, suffixes.prompt_ids], dim=1),
        rows=suffixes.rows,
        lengths=tuple(n + len(layout.prompt) for n, layout in zip(past, suffixes.layouts, strict=True)),
        position_offsets=tuple(offset - n for n, offset in zip(past, suffixes.position_offsets, strict=True)),
    )


def run_on_cache(
    model: LoadedModel,
    cache: KVCache,
    before: Tensor,
    more: PaddedRows,
    later: Mapping[str, Tensor],
    *,
    is_padded: bool = True,
) -> Any:
    """The decoder over `more` tokens after those of the cache, whose prompt ids are `before` [rows, tokens].

    A token reads the tokens of its own prompt and the shared ones, up to itself. `is_padded` is False if every token of
    a row is one of its prompt's.
    """
    attention_mask = make_mask(model, before, more.prompt_ids, is_padded=is_padded)
    decoder = model.hf_model.get_submodule(model.family.modules.decoder)
    with grouped_attention(decoder, attention_mask):
        return decoder(
            input_ids=more.token_ids,
            attention_mask=attention_mask,
            position_ids=more.position_ids,
            **{name_of_cache(decoder): cache},
            use_cache=True,
            **later,
        )


def name_of_cache(decoder: nn.Module) -> str:
    """What the decoder calls its KV cache, in arguments and output: `cache` since transformers 5.24."""
    return "cache" if "cache" in signature(type(decoder).forward).parameters else "past_key_values"


def end_states(output: Any, padded: PaddedRows) -> Tensor:
    """The state of each prompt's last token after the final norm, [prompts, hidden size]."""
    rows, indices = padded.ends.to(output.last_hidden_state.device)
    return output.last_hidden_state[rows, indices]

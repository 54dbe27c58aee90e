"""Which tokens of the KV cache a new token reads: its own prompt's and the shared ones, within window and chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from midsight.checkpoints.loading import LoadedModel
from midsight.families.inputs import CHUNKED

LIMITED = ("sliding_attention", CHUNKED)
"""Kinds of layers in which a token does not read the whole prompt."""
SHARED, PADDING = -1, -2
"""Prompt ids of tokens that all prompts of their row read, and of padding."""

UNMASKED_ATTENTION = ("flash", "paged")
"""Kernels whose names start like this take no mask for single tokens. They leave out padding, and so count a sliding
window in real tokens themselves."""


def takes_token_masks(attention: str) -> bool:
    """Whether the attention kernel of this name takes a mask for single tokens, as a shared prefix needs it."""
    return not attention.startswith(UNMASKED_ATTENTION)


def make_mask(model: LoadedModel, before: Tensor, new: Tensor, *, is_padded: bool) -> Tensor | dict[str, Tensor] | None:
    """The attention mask of new tokens, whose prompt ids are `new` [rows, new tokens], on a cache of `before`.

    It covers past and new tokens: with a mask of the new ones alone, transformers computes wrong numbers. Single
    tokens are masked here, because transformers would ask the device whether there is padding. None if every token
    reads all tokens up to itself: then `is_padded` is False and the prompts have a row each.
    """
    prompt_ids = torch.cat([before, new], dim=1)
    if not takes_token_masks(model.attention):
        return (prompt_ids != PADDING).long()
    reach = model.sliding_window or model.attention_chunk
    is_limited = reach is not None and prompt_ids.shape[1] > reach
    if not is_padded and not is_limited:
        return None
    reads = readable(before, new)
    everything = as_bias(reads, model.dtype)
    if not is_limited:
        return everything
    return by_kind(model, everything, as_bias(within_reach(model, reads), model.dtype))


def make_image_mask(model: LoadedModel, prompt_ids: Tensor, blocks: Tensor) -> Tensor | dict[str, Tensor]:
    """The attention mask of whole prompts, one per row, in which the tokens of a block read each other.

    `prompt_ids` and `blocks` are int64 [rows, tokens]; `blocks` is as the family's `blocks` numbers them. A sliding
    window limits what is read outside the block only, except where the family reads ahead in sliding layers only.
    """
    past = readable(prompt_ids[:, :0], prompt_ids)
    inside = (blocks[:, None] == blocks[..., None]) & (blocks[:, None] >= 0)
    window = model.sliding_window
    slides = window is not None and prompt_ids.shape[1] > window
    recent = last_of(past, window) if slides and window is not None else past
    if model.family.decoder.only_sliding_layers_read_ahead:
        return by_kind(model, as_bias(past, model.dtype), as_bias(recent | (inside & ~past), model.dtype))
    everything = as_bias(past | inside, model.dtype)
    return by_kind(model, everything, as_bias(recent | inside, model.dtype)) if slides else everything


def by_kind(model: LoadedModel, everything: Tensor, recent: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask of each kind of layer; one mask if the decoder, all of whose layers are limited, names no kinds."""
    kinds = model.layer_types
    return {kind: recent if kind in LIMITED else everything for kind in kinds} if kinds else recent


def readable(before: Tensor, new: Tensor) -> Tensor:
    """The tokens that each new token reads: those of its own prompt and the shared ones, up to itself.

    bool [rows, new tokens, all tokens]. Padding reads the prefix too, since softmax over a fully masked row is NaN.
    """
    prompt_ids = torch.cat([before, new], dim=1)
    reads = (prompt_ids[:, None] == SHARED) | (prompt_ids[:, None] == new[..., None])
    return reads & torch.ones(reads.shape[1:], dtype=torch.bool, device=reads.device).tril(before.shape[1])


def within_reach(model: LoadedModel, reads: Tensor) -> Tensor:
    """The tokens of `reads` that a new token reads in layers that slide or read chunks."""
    if model.sliding_window is not None:
        return last_of(reads, model.sliding_window)
    return reads if model.attention_chunk is None else same_chunk(reads, model.attention_chunk)


def same_chunk(reads: Tensor, chunk: int) -> Tensor:
    """The tokens in the same chunk of the prompt as the new token, which is the last that it reads; bool like `reads`.

    A chunk counts neither padding nor the tokens of other prompts.
    """
    number = (reads.cumsum(-1) - 1) // chunk
    return reads & (number == number[..., -1:])


def last_of(reads: Tensor, window: int) -> Tensor:
    """The last `window` of the tokens that each new token reads, bool like `reads`.

    A window counts neither padding nor the tokens of other prompts.
    """
    from_end = reads.flip(-1).cumsum(-1).flip(-1)
    return reads & (from_end <= window)


def as_bias(reads: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds: 0 for a token that is read, else the dtype's smallest number; [rows, 1, new, all]."""
    bias = torch.zeros(reads.shape, dtype=dtype, device=reads.device)
    return bias.masked_fill(~reads, torch.finfo(dtype).min)[:, None]

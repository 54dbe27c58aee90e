"""What goes through a model: images for the encoder, encoded images, and the decoder's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from midsight.prompts.token_layout import TokenLayout

KVCache = Cache
"""Keys and values of every decoder layer, as transformers keeps them."""


@dataclass(frozen=True)
class ImageInputs:
    """One image as the vision encoder takes it."""

    pixel_values: Tensor
    """float32, from the processor: [crops, 3, height, width], or [patches, values] if images are not cut into crops.
    Padding crops are there only if the encoder's numbers depend on them."""
    patch_mask: Tensor
    """bool [crops, patch rows, patch columns], True where a patch belongs to the image."""
    original_size: tuple[int, int]
    """Width and height of the image before the processor resized it, in pixels."""
    grid: tuple[int, int]
    """Rows and columns of the image, counted in sub-crops, in tiles, or in image tokens (Qwen)."""
    tokens: int
    """Image tokens that stand for it in the prompt."""
    attended: int
    """How many of its embeddings question and answer attend to, the first ones: equal to `tokens`, or for
    cross-attention the number of states that are not padding."""


@dataclass(frozen=True)
class EncodedImage:
    """One image after the vision encoder: what the decoder and the vision columns need of it."""

    image: ImageInputs
    """What was encoded."""
    embeddings: Tensor
    """Model dtype [rows, hidden size]: one row for each of the prompt's image tokens, in their order, or the states
    that cross-attention reads."""
    patch_sum: Tensor
    """float32 [vision width]: the feature layer summed over all useful patches."""
    patch_count: int
    """Number of those patches."""


@dataclass(frozen=True)
class DecoderInputs:
    """What the decoder takes in addition to attention mask, positions and cache."""

    prefill: Mapping[str, Tensor]
    """For whole prompts, with the tokens or their embeddings."""
    later: Mapping[str, Tensor]
    """For every later call on the cache, in addition to its tokens; rows first, one value for all tokens of a row."""


def mean_over_patches(images: Sequence[EncodedImage]) -> Tensor:
    """Mean over all useful patches of all crops of all images, float32 [vision width]."""
    return torch.stack([image.patch_sum for image in images]).sum(dim=0) / sum(image.patch_count for image in images)


def sequential_positions(layout: TokenLayout, _images: Sequence[ImageInputs]) -> Tensor:
    """Positions of a decoder that counts every token, image or text, int64 [1, tokens]."""
    return torch.arange(len(layout.prompt))[None]


def continue_positions(positions: Tensor, more: int) -> Tensor:
    """`positions`, continued for `more` tokens, int64 [axes, tokens + more]."""
    following = positions.max() + 1 + torch.arange(more)
    return torch.cat([positions, following.expand(len(positions), more)], dim=1)


def insert_image_embeddings(
    model: nn.Module, token_ids: Tensor, layouts: Sequence[TokenLayout], images: Sequence[Sequence[EncodedImage]]
) -> DecoderInputs:
    """Token embeddings, those of image tokens replaced by the images: model dtype [batch, tokens, hidden size]."""
    hf_model: Any = model
    embeddings = hf_model.get_input_embeddings()(token_ids)
    for row, layout in enumerate(layouts):
        indices = torch.from_numpy(layout.image_indices()).to(embeddings.device)
        embeddings[row, indices] = torch.cat([image.embeddings for image in images[row]])
    return DecoderInputs({"inputs_embeds": embeddings}, {})

"""What goes through a model: images for the encoder, encoded images, and the decoder's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import get_layer_types_and_kwargs

from midsight.errors import MidsightError
from midsight.prompts.token_layout import TokenLayout

CHUNKED = "chunked_attention"
"""transformers' name of layers in which a token reads only its chunk of the prompt."""
KVCache = Cache
"""Keys and values of every decoder layer, as transformers keeps them."""
LINEAR = "linear_attention"
"""transformers' name of layers whose cache is a state."""


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
    text: str = ""
    """What the processor writes for it in the prompt, every image token spelled out; empty if that is the image token
    repeated."""
    pooled: Tensor | None = None
    """Integers [image tokens, patches]: the patches, counted over all crops, from which each of its tokens is pooled,
    and -1 for none; None if the model knows them by itself."""
    larger_pixels: Tensor | None = None
    """float32 [1, 3, height, width]: the image for a second encoder; None if there is one encoder."""

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return self.pixel_values.nbytes + (0 if self.larger_pixels is None else self.larger_pixels.nbytes)


@dataclass(frozen=True)
class EncodedImage:
    """One image after the vision encoder: what the decoder and the vision columns need of it."""

    image: ImageInputs
    """What was encoded."""
    embeddings: Tensor
    """Model dtype [rows, hidden size]: one row for each of the prompt's image tokens, in their order, or the states
    that cross-attention reads. [rows, n x hidden size] if the decoder adds more after its first layers."""
    patch_sum: Tensor
    """float32 [vision width]: the feature layer summed over all useful patches."""
    patch_count: int
    """Number of those patches."""


@dataclass(frozen=True)
class DecoderInputs:
    """What the decoder takes in addition to attention mask, positions and cache."""

    prefill: Mapping[str, Tensor | list[Tensor]]
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


def image_blocks(_config: Any, token_ids: Tensor, layouts: Sequence[TokenLayout]) -> Tensor:
    """Which run of image tokens of its row each token belongs to, -1 for other tokens: int64 [rows, tokens]."""
    numbers = torch.full_like(token_ids, -1)
    for row, layout in enumerate(layouts):
        for number, span in enumerate(layout.image):
            numbers[row, span.start : span.stop] = number
    return numbers


def insert_image_embeddings(
    model: nn.Module, token_ids: Tensor, layouts: Sequence[TokenLayout], images: Sequence[Sequence[EncodedImage]]
) -> DecoderInputs:
    """Token embeddings, those of image tokens replaced by the images: model dtype [batch, tokens, hidden size]."""
    hf_model: Any = model
    embeddings = hf_model.get_input_embeddings()(token_ids)
    for row, layout in enumerate(layouts):
        indices = torch.from_numpy(layout.image_indices()).to(embeddings.device)
        embeddings[row, indices] = torch.cat([image.embeddings for image in images[row]]).to(embeddings.device)
    return DecoderInputs({"inputs_embeds": embeddings}, {})


def sliding_window(config: Any) -> int | None:
    """Number of tokens, itself included, that a token reads in the decoder's sliding layers; None without such layers.

    `config` is transformers' config of the whole model. Raises MidsightError for layers of kinds that midsight does not
    know, and for windows of several sizes.
    """
    kinds, layer_arguments = cache_layers(config)
    windows = {
        arguments["sliding_window"]
        for kind, arguments in zip(kinds, layer_arguments, strict=True)
        if "sliding_window" in arguments and kind != CHUNKED
    }
    others = sorted({*kinds} - {"full_attention", "sliding_attention", CHUNKED, LINEAR})
    if others or len(windows) > 1:
        found = f"of the kinds {', '.join(others)}" if others else f"with windows of {sorted(windows)} tokens"
        raise MidsightError(f"The decoder has layers {found}, which midsight does not know; use another model.")
    return next(iter(windows), None)


def attention_chunk(config: Any) -> int | None:
    """Number of tokens of a chunk, if the decoder has layers in which a token reads only its chunk; else None.

    A prompt's chunks follow each other from its first token. `config` is transformers' config of the whole model.
    Raises MidsightError if such layers have no size, or if others slide.
    """
    kinds, layer_arguments = cache_layers(config)
    if CHUNKED not in kinds:
        return None
    chunk = layer_arguments[kinds.index(CHUNKED)]["sliding_window"]
    if chunk is None or "sliding_attention" in kinds:
        raise MidsightError(
            f"The decoder has chunks of {chunk} tokens and layers of the kinds {', '.join(sorted({*kinds}))}, which "
            "midsight does not know together; use another model."
        )
    return chunk


def cache_layers(config: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The kind of each decoder layer's cache, and its arguments, without layers that read the keys of earlier ones."""
    text = config.get_text_config(decoder=True)
    kinds, layer_arguments = get_layer_types_and_kwargs(text)
    sharing = getattr(text, "kv_sharing_modes", None) or [None] * len(kinds)
    own = [index for index, mode in enumerate(sharing) if mode != "reuse"]
    return [kinds[index] for index in own], [layer_arguments[index] for index in own]


def keeps_state(config: Any) -> bool:
    """Whether some decoder layers cache one state of all tokens before, as linear attention does, in place of keys.

    Padding after a prompt would change the state, and several prompts in one row would share it.
    """
    return LINEAR in (getattr(config.get_text_config(), "layer_types", None) or ())


def keep_rows(cache: KVCache, rows: Tensor) -> None:
    """Leaves only some rows in the cache, int64 [rows kept].

    transformers' own method fails on layers with a state, which can only be put in another order.
    """
    for layer in cache.layers:
        method = "batch_select_indices" if hasattr(layer, "batch_select_indices") else "reorder_cache"
        getattr(layer, method)(rows)


def layer_types(config: Any) -> tuple[str, ...]:
    """The kinds of attention layers that a decoder tells apart by name, each once; empty if it has one kind."""
    kinds = tuple(dict.fromkeys(getattr(config.get_text_config(), "layer_types", None) or ()))
    return kinds if len(kinds) > 1 else ()

"""LLaVA-NeXT: like LLaVA 1.5, and a grid of tiles; padding goes after the projector, and every line ends in a vector.

Source of the prompt: the chat template of llava-hf/llava-v1.6-mistral-7b-hf; of tiles and modules: transformers'
image_processing_llava_next.py and modeling_llava_next.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from midsight.errors import ModelFileError
from midsight.families import llava
from midsight.families.family import Reference
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels, with_own_resizing
from midsight.prompts.declaration import FamilyPrompt


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for what LLaVA 1.5 refuses, and ModelFileError if the processor makes other grids."""
    llava.validate_processor(processor, config)
    makes = [list(size) for size in processor.image_processor.image_grid_pinpoints]
    if makes != [list(size) for size in config.image_grid_pinpoints]:
        raise ModelFileError(f"preprocessor_config.json has other image_grid_pinpoints than config.json, {makes}")


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The whole image as one tile, then the tiles of the image scaled and padded to a grid; `grid` counts those."""
    return grid_inputs(processor, image, pixels, config, lambda lines, columns: (lines, columns))


def grid_inputs(
    processor: Any,
    image: Image.Image,
    pixels: Pixels,
    config: Any,
    scaled: Callable[[int, int], tuple[int, int]],
) -> ImageInputs:
    """The same, where `scaled` tells lines of image tokens and tokens in each from the grid's lines and columns."""
    image_processor = with_own_resizing(processor.image_processor, pixels)
    size, side = image.size[::-1], llava.patches_per_side(config)
    rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    index = torch.arange(rows * side * columns * side).view(1, rows * side, columns * side)
    kept = unpad_image(index, size)[0]
    mask = torch.isin(index[0], kept).view(rows, side, columns, side).transpose(1, 2).reshape(-1, side, side)
    lines, in_each = scaled(*kept.shape)
    tokens = side * side + lines * (in_each + 1)
    return ImageInputs(
        pixel_values=image_processor(image, return_tensors="pt")["pixel_values"][0],
        patch_mask=torch.cat([torch.ones((1, side, side), dtype=torch.bool), mask]),
        original_size=image.size,
        grid=(rows, columns),
        tokens=tokens,
        attended=tokens,
    )


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """The whole image, then the tiles joined, without their padding, and with a learned vector after every line."""
    hf_model: Any = model
    projected = model.get_submodule(llava.PROJECTOR)(features[:, 1:])
    packed, _ = hf_model.model.pack_image_features(
        [projected], image_sizes([image]), "default", image_newline=hf_model.model.image_newline
    )
    return packed[0]


def image_sizes(images: Sequence[ImageInputs]) -> Tensor:
    """Height and width of each image before the processor resized it, in pixels: int64 [images, 2]."""
    return torch.tensor([image.original_size[::-1] for image in images])


def forward_inputs(_config: Any, _token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The tiles of every image, padded to the largest number of tiles, and the sizes of the images."""
    tiles = nn.utils.rnn.pad_sequence([image.pixel_values for image in images], batch_first=True)
    return {"pixel_values": tiles, "image_sizes": image_sizes(images)}


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    largest = max(height * width for height, width in config.image_grid_pinpoints) // vision.image_size**2
    return (
        f"CLIP, {vision.num_hidden_layers} layers, the whole image and up to {largest} tiles of {vision.image_size} px "
        f"in patches of {vision.patch_size}"
    )


FAMILY = replace(
    llava.FAMILY,
    name="LLaVA-NeXT",
    architecture="LlavaNextForConditionalGeneration",
    prompt=FamilyPrompt(image_token=llava.IMAGE_TOKEN, published=f"[INST] {llava.IMAGE_TOKEN}\n{{question}} [/INST]"),
    vision=replace(
        llava.FAMILY.vision,
        describe=describe_encoder,
        feature_source="vision_tower hidden_states[-2] without CLS, of the patches that are not padding",
        image_inputs=image_inputs,
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
    ),
    reference=Reference(tower_feature=llava.tower_feature, forward_inputs=forward_inputs),
)

"""LLaVA-OneVision: like LLaVA-NeXT with SigLIP, larger grids that are scaled down, and one tile if images are several.

Source of the prompt: the chat template of llava-hf/llava-onevision-qwen2-7b-ov-hf; of tiles and modules: transformers'
image_processing_llava_onevision.py and modeling_llava_onevision.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from midsight.errors import MidsightError, ModelFileError, SampleError
from midsight.families import llava, llava_next
from midsight.families.family import Reference
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels, with_own_resizing
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt
from midsight.samples.images import MAX_PIXELS

FEATURE_LAYER = -1
MOST_TILES = 9
"""Image tokens of a larger grid are scaled down to about those of so many tiles: `anyres_max_9` in the config."""
SCALED_ABOVE, LARGEST_SCALE = 1.1, 2
"""A grid is scaled down if it is so many times as high and wide as that. Up to the second, every patch is read."""


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for other features and grids than the published ones, and for tiles that do not fit."""
    vision = config.vision_config
    used = (vision.model_type, config.vision_feature_layer, config.vision_feature_select_strategy)
    if used != ("siglip_vision_model", FEATURE_LAYER, "full"):
        raise MidsightError(
            f"config.json has the encoder {used[0]} with feature layer {used[1]} and selection {used[2]}, and midsight "
            f"knows LLaVA-OneVision with siglip_vision_model, {FEATURE_LAYER} and full; use another model."
        )
    largest, aspect = largest_grid(config), f"anyres_max_{MOST_TILES}"
    if config.vision_aspect_ratio != aspect or largest > LARGEST_SCALE**2 * MOST_TILES:
        raise MidsightError(
            f"config.json has vision_aspect_ratio {config.vision_aspect_ratio} and grids of up to {largest} tiles, and "
            f"midsight knows LLaVA-OneVision with {aspect} and {LARGEST_SCALE**2 * MOST_TILES}; use another model."
        )
    image_processor = processor.image_processor
    makes = (image_processor.size["height"], as_lists(image_processor.image_grid_pinpoints))
    if makes != (vision.image_size, as_lists(config.image_grid_pinpoints)):
        raise ModelFileError(
            f"preprocessor_config.json makes tiles of {makes[0]} px in {len(makes[1])} grids, and config.json has "
            f"{vision.image_size} px and {len(config.image_grid_pinpoints)} grids, or others"
        )


def as_lists(sizes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sizes as lists, whether a file or a class gave them."""
    return [list(size) for size in sizes]


def largest_grid(config: Any) -> int:
    """Tiles of the largest grid."""
    return max(height * width for height, width in config.image_grid_pinpoints) // config.vision_config.image_size**2


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """As for LLaVA-NeXT; a large grid's image tokens are scaled down."""
    most = MOST_TILES * llava.patches_per_side(config) ** 2
    return llava_next.grid_inputs(
        processor, image, pixels, config, lambda lines, columns: scaled_down(lines, columns, most)
    )


def scaled_down(lines: int, columns: int, most: int) -> tuple[int, int]:
    """Lines of image tokens and tokens in each, for a grid with so many lines and columns of patches."""
    ratio = math.sqrt(lines * columns / most)
    return (int(lines // ratio), int(columns // ratio)) if ratio > SCALED_ABOVE else (lines, columns)


def image_among_several(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The image padded to a square, as one tile, all of which reaches the decoder.

    Raises SampleError if the square would be larger than an image may be.
    """
    longest = max(image.size)
    if longest**2 > MAX_PIXELS:
        raise SampleError(
            f"An image of {image.width} x {image.height} pixels among several would be padded to {longest:,} x "
            f"{longest:,}, and at most {MAX_PIXELS:,} pixels are taken; make it smaller."
        )
    image_processor = with_own_resizing(processor.image_processor, pixels)
    beside_another = [[image, Image.new("RGB", (1, 1))]]
    side = llava.patches_per_side(config)
    return ImageInputs(
        pixel_values=image_processor(beside_another, return_tensors="pt")["pixel_values"][0],
        patch_mask=torch.ones((1, side, side), dtype=torch.bool),
        original_size=image.size,
        grid=(1, 1),
        tokens=side * side + 1,
        attended=side * side + 1,
    )


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The last hidden state of each image before the encoder's norm, [tiles, patches, vision width]."""
    tower: Any = model.get_submodule(llava.VISION_TOWER)
    yield from encode_tiles(
        tower, images, lambda tiles: tower(tiles, output_hidden_states=True).hidden_states[FEATURE_LAYER]
    )


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """The whole image, then the tiles joined, without padding, scaled down, and with a learned vector after each line.

    One tile alone is followed by that vector.
    """
    hf_model: Any = model
    packed, _ = hf_model.model.pack_image_features(
        [model.get_submodule(llava.PROJECTOR)(features)],
        llava_next.image_sizes([image]),
        image_newline=hf_model.model.image_newline,
        vision_aspect_ratio=hf_model.config.vision_aspect_ratio,
    )
    return packed[0]


def forward_inputs(config: Any, token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """As for LLaVA-NeXT, and the number of images in the prompt: if they are several, none is cut into tiles."""
    made = llava_next.forward_inputs(config, token_ids, images)
    return {**made, "batch_num_images": torch.tensor([len(images)])}


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"SigLIP, {vision.num_hidden_layers} layers, the whole image and up to {largest_grid(config)} tiles of "
        f"{vision.image_size} px in patches of {vision.patch_size}; one tile each if images are several"
    )


FAMILY = replace(
    llava.FAMILY,
    name="LLaVA-OneVision",
    architecture="LlavaOnevisionForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=llava.IMAGE_TOKEN,
        placeholder="<video>",
        published=f"<|im_start|>user {llava.IMAGE_TOKEN}\n{{question}}<|im_end|><|im_start|>assistant\n",
    ),
    vision=replace(
        llava.FAMILY.vision,
        describe=describe_encoder,
        feature_source="vision_tower hidden_states[-1], before its norm, of the patches that are not padding",
        image_inputs=image_inputs,
        image_among_several=image_among_several,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(1),
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
    ),
    reference=Reference(
        tower_feature=lambda output, images: split_by_image(output.hidden_states[FEATURE_LAYER], images),
        forward_inputs=forward_inputs,
    ),
)

"""InternVL 3: square tiles and then the whole image, whose patches are joined two by two, between two markers.

Source of the prompt: the chat template of OpenGVLab/InternVL3-1B-hf, and transformers' processing_internvl.py for what
it writes for an image; of tiles and modules: image_processing_got_ocr2.py and modeling_internvl.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import GotOcr2ImageProcessor, GotOcr2ImageProcessorPil

from midsight.errors import MidsightError, ModelFileError
from midsight.families import llava
from midsight.families.family import Family, Reference, StoredTensors, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels, with_resizing
from midsight.families.squares import patches_per_side
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "<IMG_CONTEXT>"  # noqa: S105  (a token of the vocabulary, no password)


def tokens_of_tile(config: Any) -> int:
    """Image tokens of one tile."""
    return round((patches_per_side(config) * config.downsample_ratio) ** 2)


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for another feature layer than the published one, and for tiles that do not fit it."""
    used = (config.vision_feature_layer, config.vision_feature_select_strategy)
    if used != (-1, "default"):
        raise MidsightError(
            f"config.json has the feature layer {used[0]} and the selection {used[1]}, and midsight knows InternVL "
            "with -1 and default; use another model."
        )
    takes = (config.vision_config.image_size[0], tokens_of_tile(config))
    makes = (processor.image_processor.size["height"], getattr(processor, "image_seq_length", takes[1]))
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make tiles of {makes[0]} px and {makes[1]} tokens, "
            f"and config.json has {takes[0]} and {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The tiles, between two markers."""
    each = tokens_of_tile(config)
    return tile_inputs(processor, image, pixels, config, each, lambda tiles: f"<img>{IMAGE_TOKEN * each * tiles}</img>")


def tile_inputs(
    processor: Any, image: Image.Image, pixels: Pixels, config: Any, each: int, written: Callable[[int], str]
) -> ImageInputs:
    """The tiles line by line, then the whole image if there are several; a tile has `each` image tokens.

    The folder's image processor makes one tile only; its whole processor asks it for several, and so does this.
    `written` is the text for so many tiles.
    """
    image_processor = with_resizing(
        processor.image_processor, pixels, pil=GotOcr2ImageProcessorPil, tensors=GotOcr2ImageProcessor
    )
    tiles = image_processor(image, crop_to_patches=True, return_tensors="pt")["pixel_values"]
    side = patches_per_side(config)
    return ImageInputs(
        pixel_values=tiles,
        patch_mask=torch.ones((len(tiles), side, side), dtype=torch.bool),
        original_size=image.size,
        grid=(len(tiles), 1),
        tokens=len(tiles) * each,
        attended=len(tiles) * each,
        text=written(len(tiles)),
    )


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The encoder's output for each image, [tiles, CLS and patches, vision width]."""
    tower: Any = model.get_submodule(llava.VISION_TOWER)
    yield from encode_tiles(tower, images, lambda tiles: tower(tiles).last_hidden_state)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Patches joined in squares and projected."""
    hf_model: Any = model
    tiles, patches, width = features[:, 1:].shape
    side = round(patches**0.5)
    squares = features[:, 1:].reshape(tiles, side, side, width)
    joined = hf_model.model.pixel_shuffle(squares, scale_factor=hf_model.config.downsample_ratio)
    return model.get_submodule(llava.PROJECTOR)(joined.flatten(1, 2)).flatten(0, 1)


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"InternViT, {vision.num_hidden_layers} layers, tiles of {vision.image_size[0]} px in patches of "
        f"{vision.patch_size[0]}, and the whole image"
    )


FAMILY = Family(
    name="InternVL 3",
    architecture="InternVLForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        placeholder="</?img>|<video>",
        published=f"<|im_start|>user\n{IMAGE_TOKEN}\n{{question}}<|im_end|>\n<|im_start|>assistant\n",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower last_hidden_state without CLS",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=llava.useful_patches,
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=lambda config: config.vision_config.image_size[0],
    ),
    stored=StoredTensors(older_names=llava.OLDER_NAMES),
    reference=Reference(tower_feature=lambda output, images: split_by_image(output.last_hidden_state, images)),
)

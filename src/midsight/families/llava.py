"""LLaVA 1.5: CLIP's patches, projected one by one into Llama's sequence.

Source of the prompt: the chat template of llava-hf/llava-1.5-7b-hf; of the modules: transformers' modeling_llava.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from midsight.errors import MidsightError, ModelFileError
from midsight.families.family import Family, Pixels, Reference, StoredTensors, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import with_own_resizing
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "<image>"  # noqa: S105  (a token of the vocabulary, no password)
VISION_TOWER = "model.vision_tower"
PROJECTOR = "model.multi_modal_projector"
FEATURE_LAYER = -2
OLDER_NAMES = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.model\.": "model.language_model.",
    r"^(vision_tower|multi_modal_projector|image_newline)": r"model.\1",
}
"""Names of tensors in the published files, as StoredTensors has them."""


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for another feature layer than the published one, and for squares that do not fit it."""
    vision = config.vision_config
    used = (vision.model_type, config.vision_feature_layer, config.vision_feature_select_strategy)
    if used != ("clip_vision_model", FEATURE_LAYER, "default"):
        raise MidsightError(
            f"config.json has the encoder {used[0]} with feature layer {used[1]} and selection {used[2]}, and midsight "
            f"knows LLaVA with clip_vision_model, {FEATURE_LAYER} and default; use another model."
        )
    size = processor.image_processor.crop_size["height"]
    if size != vision.image_size:
        raise ModelFileError(
            f"preprocessor_config.json makes squares of {size} px, and config.json has {vision.image_size}"
        )


def patches_per_side(config: Any) -> int:
    """Patches in a row of a square."""
    return config.vision_config.image_size // config.vision_config.patch_size


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """One square."""
    return square_inputs(processor, image, pixels, patches_per_side(config))


def square_inputs(processor: Any, image: Image.Image, pixels: Pixels, side: int) -> ImageInputs:
    """One square of `side` x `side` patches, each of which becomes an image token."""
    image_processor = with_own_resizing(processor.image_processor, pixels)
    return ImageInputs(
        pixel_values=image_processor(image, return_tensors="pt")["pixel_values"],
        patch_mask=torch.ones((1, side, side), dtype=torch.bool),
        original_size=image.size,
        grid=(1, 1),
        tokens=side * side,
        attended=side * side,
    )


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """Hidden state -2 of each image, [tiles, CLS and patches, vision width]."""
    tower: Any = model.get_submodule(VISION_TOWER)
    yield from encode_tiles(
        tower, images, lambda tiles: tower(tiles, output_hidden_states=True).hidden_states[FEATURE_LAYER]
    )


def useful_patches(image: ImageInputs) -> Tensor:
    """Every patch that is not padding, without CLS: the model drops it."""
    patches = image.patch_mask.flatten(1)
    return torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Every patch through the projector."""
    return model.get_submodule(PROJECTOR)(features[:, 1:]).flatten(0, 1)


def tower_feature(output: Any, images: Sequence[ImageInputs]) -> list[Tensor]:
    """Hidden state -2 in the tower's own output, cut into images."""
    return split_by_image(output.hidden_states[FEATURE_LAYER], images)


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    size = f"{vision.image_size} px in patches of {vision.patch_size}"
    return f"CLIP, {vision.num_hidden_layers} layers, one square of {size}"


FAMILY = Family(
    name="LLaVA 1.5",
    architecture="LlavaForConditionalGeneration",
    prompt=FamilyPrompt(image_token=IMAGE_TOKEN, published=f"USER: {IMAGE_TOKEN}\n{{question}} ASSISTANT:"),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower hidden_states[-2] without CLS",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=useful_patches,
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=lambda config: config.vision_config.image_size,
    ),
    stored=StoredTensors(older_names=OLDER_NAMES),
    reference=Reference(tower_feature=tower_feature),
)

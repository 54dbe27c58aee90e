"""FastVLM: one square through FastViTHD, which is timm's and mostly convolutions, then patch by patch into Qwen2.

Source of the prompt: the chat template of transformers' convert_fastvlm_weights_to_hf.py, which made
KamilaMila/FastVLM-7B; of the modules: transformers' modeling_fast_vlm.py and timm's fastvit.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from midsight.errors import MidsightError, ModelFileError
from midsight.families import llava
from midsight.families.family import Family, Reference, Vision, refuse_timm
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt

ENCODER = ("timm_wrapper", "fastvit_mci3")
"""Type and name of the encoder in the config."""
ENCODER_ARGUMENTS = {"inference_mode", "layers", "embed_dims"}
"""What may decide its shape; others of timm's arguments name files of weights."""
PATCH_PX = 64
"""Side of a patch: the encoder halves the square six times."""


def validate_config(config: Any) -> None:
    """Raises MidsightError for another encoder than the published one."""
    require_encoder(config, "FastVLM", ENCODER, ENCODER_ARGUMENTS)


def require_encoder(config: Any, family: str, encoder: tuple[str, str], known: set[str]) -> None:
    """Raises MidsightError for another encoder of timm's than the family's, and for arguments that are not known."""
    refuse_timm(config, known=["vision_config"])
    vision = config.vision_config
    used = (vision.model_type, getattr(vision, "architecture", None))
    arguments = sorted({*(getattr(vision, "model_args", None) or {})} - known)
    if used != encoder or arguments:
        given = f" and the arguments {', '.join(arguments)}" if arguments else ""
        raise MidsightError(
            f"config.json has the encoder {used[0]} {used[1]}{given}, and midsight knows {family} with "
            f"{' '.join(encoder)} and no arguments but {', '.join(sorted(known))}; use another model."
        )


def validate_processor(processor: Any, config: Any) -> None:
    """Raises ModelFileError if the processor makes other squares than the config's number of image tokens needs."""
    size, patch = processor.image_processor.crop_size["height"], getattr(processor, "patch_size", PATCH_PX)
    if (size, patch) != (crop_px(config), PATCH_PX):
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make squares of {size} px in patches of {patch}, and "
            f"config.json has {config.image_seq_length} image tokens, which is {crop_px(config)} px in patches of "
            f"{PATCH_PX}"
        )


def patches_per_side(config: Any) -> int:
    """Patches in a row of the square."""
    return math.isqrt(config.image_seq_length)


def crop_px(config: Any) -> int:
    """Side of the square, in pixels."""
    return patches_per_side(config) * PATCH_PX


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """One square: the middle of the image."""
    return llava.square_inputs(processor, image, pixels, patches_per_side(config))


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The output of the encoder's last convolution for each image, [1, patches, vision width]."""
    tower: Any = model.get_submodule(llava.VISION_TOWER)
    yield from encode_tiles(tower, images, lambda squares: by_patch(tower(squares).last_hidden_state))


def by_patch(maps: Tensor) -> Tensor:
    """Feature maps [squares, vision width, rows, columns] as [squares, patches, vision width], line by line."""
    return maps.flatten(2).transpose(1, 2)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Every patch through the projector."""
    return model.get_submodule(llava.PROJECTOR)(features).flatten(0, 1)


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    return f"FastViTHD, three stages of convolutions and two of attention, one square of {crop_px(config)} px"


FAMILY = Family(
    name="FastVLM",
    architecture="FastVlmForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=llava.IMAGE_TOKEN,
        published=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{llava.IMAGE_TOKEN}\n{{question}}<|im_end|>\n<|im_start|>assistant\n"
        ),
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower last_hidden_state, the output of its last convolution",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(1),
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=crop_px,
    ),
    reference=Reference(
        tower_feature=lambda output, images: split_by_image(by_patch(output.last_hidden_state), images)
    ),
    validate_config=validate_config,
    needs={"timm": "fastvlm"},
)

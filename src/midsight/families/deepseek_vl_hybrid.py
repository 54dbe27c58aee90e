"""DeepSeek-VL 7B: the square of DeepSeek-VL, and a larger one through SAM's encoder, joined patch by patch.

Source of the prompt: transformers' script that converts deepseek-ai/deepseek-vl-7b-chat; of the modules: transformers'
modeling_deepseek_vl_hybrid.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from midsight.errors import MidsightError, ModelFileError
from midsight.families import deepseek_vl, llava
from midsight.families.family import Reference
from midsight.families.inputs import ImageInputs
from midsight.families.placement import device_of
from midsight.families.resizing import Pixels, with_own_resizing
from midsight.families.squares import encoder_name
from midsight.families.tiles import groups_of, split_by_image

IMAGES_PER_CALL = 2
"""Maximum number of images in one encoder call: SAM has scores of each patch for each of 4,096."""


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for another large encoder than the published one, and ModelFileError for other squares."""
    large = config.high_res_vision_config
    if large.model_type != "sam_vision_model":
        raise MidsightError(
            f"config.json has the encoder {large.model_type} for large images, and midsight knows DeepSeek-VL with "
            "sam_vision_model; use another model."
        )
    deepseek_vl.validate_processor(processor, config)
    makes = processor.image_processor.high_res_size["height"]
    if makes != large.image_size:
        raise ModelFileError(
            f"preprocessor_config.json makes large squares of {makes} px, and config.json has {large.image_size}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """Both squares; their padding counts, because the model reads it like the image."""
    made = with_own_resizing(processor.image_processor, pixels)(image, return_tensors="pt")
    side = llava.patches_per_side(config)
    return ImageInputs(
        pixel_values=made["pixel_values"],
        patch_mask=torch.ones((1, side, side), dtype=torch.bool),
        original_size=image.size,
        grid=(1, 1),
        tokens=side * side,
        attended=side * side,
        larger_pixels=made["high_res_pixel_values"],
    )


def large_width(config: Any) -> int:
    """Width of the large square's features, after the convolutions that join its patches."""
    return 4 * config.high_res_vision_config.output_channels


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The features of both encoders for each image, SAM's first: [1, patches, vision width]."""
    hf_model: Any = model
    tower = hf_model.model.vision_model
    device, dtype = device_of(tower), next(tower.parameters()).dtype
    for group in groups_of(images, IMAGES_PER_CALL):
        small = torch.cat([image.pixel_values for image in group]).to(device, dtype)
        large = torch.cat([torch.as_tensor(image.larger_pixels) for image in group]).to(device, dtype)
        yield from joined(
            hf_model.model.get_low_res_image_features(small).last_hidden_state,
            hf_model.model.get_high_res_image_features(large).last_hidden_state,
            group,
        )


def joined(small: Tensor, large: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
    """The features of both squares of each patch side by side, as the aligner has them, cut into images."""
    return split_by_image(torch.cat([large.to(small.device), small], dim=-1), images)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Both features of every patch through the aligner."""
    hf_model: Any = model
    large = large_width(hf_model.config)
    # in one piece each, so that they are rounded as in transformers' own forward
    parts = (features[..., large:].contiguous(), features[..., :large].contiguous())
    return hf_model.model.aligner(*parts).flatten(0, 1)


def forward_inputs(_config: Any, _token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """Both squares of all images."""
    return {
        "pixel_values": torch.cat([image.pixel_values for image in images]),
        "high_res_pixel_values": torch.cat([torch.as_tensor(image.larger_pixels) for image in images]),
    }


def describe_encoder(config: Any) -> str:
    """What the vision encoders are, in words."""
    encoders = config.vision_config, config.high_res_vision_config
    names = " and ".join(map(encoder_name, encoders))
    layers, squares, patches = (
        " and ".join(str(getattr(encoder, size)) for encoder in encoders)
        for size in ("num_hidden_layers", "image_size", "patch_size")
    )
    return f"{names}, {layers} layers, squares of {squares} px in patches of {patches}"


FAMILY = replace(
    deepseek_vl.FAMILY,
    name="DeepSeek-VL hybrid",
    architecture="DeepseekVLHybridForConditionalGeneration",
    modules=replace(deepseek_vl.FAMILY.modules, second_vision_tower="model.high_res_vision_model"),
    vision=replace(
        deepseek_vl.FAMILY.vision,
        describe=describe_encoder,
        feature_source="high_res_vision_proj and vision_model last_hidden_state, as the aligner takes them",
        image_inputs=image_inputs,
        encode=encode,
        image_embeddings=image_embeddings,
        width=lambda config: large_width(config) + config.vision_config.hidden_size,
        validate_processor=validate_processor,
    ),
    reference=Reference(
        tower_feature=lambda taken, images: joined(taken[0], taken[1], images),
        forward_inputs=forward_inputs,
        module="model.aligner",
        of_input=True,
    ),
)

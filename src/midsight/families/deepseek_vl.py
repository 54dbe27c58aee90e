"""DeepSeek-VL: one square, padded in the color of the mean, whose patches are projected one by one.

Source of the prompt: transformers' script that converts deepseek-ai/deepseek-vl-1.3b-chat; of the modules:
transformers' modeling_deepseek_vl.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image

from midsight.errors import MidsightError, ModelFileError
from midsight.families import llava
from midsight.families.family import Family, Modules
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels
from midsight.families.squares import LAST, Squares
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "<image_placeholder>"  # noqa: S105  (a token of the vocabulary, no password)
SQUARES = Squares(vision_tower="model.vision_model", projector="model.aligner", feature=LAST)


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for another encoder than the published one, and ModelFileError for other squares."""
    vision = config.vision_config
    if vision.model_type != "siglip_vision_model":
        raise MidsightError(
            f"config.json has the encoder {vision.model_type}, and midsight knows DeepSeek-VL with "
            "siglip_vision_model; use another model."
        )
    takes = (vision.image_size, llava.patches_per_side(config) ** 2)
    makes = (processor.image_processor.size["height"], getattr(processor, "num_image_tokens", takes[1]))
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make squares of {makes[0]} px and {makes[1]} tokens, "
            f"and config.json has {takes[0]} and {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """One square; its padding counts, because the model reads it like the image."""
    return llava.square_inputs(processor, image, pixels, llava.patches_per_side(config))


FAMILY = Family(
    name="DeepSeek-VL",
    architecture="DeepseekVLForConditionalGeneration",
    modules=Modules(vision_tower=SQUARES.vision_tower),
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        placeholder=r"<(begin|end)_of_image>",
        published=(
            "You are a helpful language and vision assistant. You are able to understand the visual content that the "
            "user provides, and assist the user with a variety of tasks using natural language.\n\n"
            f"User: {IMAGE_TOKEN}{{question}}\n\nAssistant:"
        ),
    ),
    vision=replace(SQUARES.vision(), image_inputs=image_inputs, validate_processor=validate_processor),
    reference=SQUARES.reference(),
)

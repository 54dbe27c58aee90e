"""PaliGemma 2: SigLIP's patches, projected one by one; every token of the prompt reads every other one.

Source of the prompt: transformers' processing_paligemma.py, since published folders have no chat template; of the
modules: modeling_paligemma.py and modeling_gemma2.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from midsight.errors import MidsightError, ModelFileError
from midsight.families import gemma3, llava
from midsight.families.family import Decoder, Family, Reference, StoredTensors, softcapped_logits
from midsight.families.inputs import ImageInputs, sequential_positions
from midsight.families.resizing import Pixels
from midsight.prompts.declaration import QUESTION, FamilyPrompt
from midsight.prompts.token_layout import TokenLayout

IMAGE_TOKEN = "<image>"  # noqa: S105  (a token of the vocabulary, no password)
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('PaliGemma takes no system turn') }}{% endif %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for content in message['content'] %}{% if content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
"""All images, then the text: what the processor takes."""


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for another encoder, and ModelFileError for squares that do not fit it."""
    vision, image_processor = config.vision_config, processor.image_processor
    if vision.model_type != "siglip_vision_model":
        raise MidsightError(
            f"config.json has the encoder {vision.model_type}, and midsight knows PaliGemma with siglip_vision_model; "
            "use another model."
        )
    takes = (vision.image_size, llava.patches_per_side(config) ** 2)
    makes = (image_processor.size["height"], getattr(image_processor, "image_seq_length", takes[1]))
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json makes squares of {makes[0]} px and {makes[1]} tokens, and config.json has "
            f"{takes[0]} and {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """One square."""
    return llava.square_inputs(processor, image, pixels, llava.patches_per_side(config))


def with_first_token(text: str, tokenizer: Any) -> str:
    """The rendered prompt with the first token behind the last image, and a line break at its end, as the processor
    puts them.
    """
    end = text.rfind(IMAGE_TOKEN) + len(IMAGE_TOKEN)
    return f"{text[:end]}{tokenizer.bos_token}{text[end:]}\n"


def positions(layout: TokenLayout, images: Sequence[ImageInputs]) -> Tensor:
    """Positions are counted from 1, int64 [1, tokens]."""
    return sequential_positions(layout, images) + 1


def blocks(_config: Any, token_ids: Tensor, layouts: Sequence[TokenLayout]) -> Tensor:
    """0 for every token of a prompt, and -1 for padding: int64 [rows, tokens]."""
    numbers = torch.full_like(token_ids, -1)
    for row, layout in enumerate(layouts):
        numbers[row, layout.prompt.start : layout.prompt.stop] = 0
    return numbers


def forward_inputs(_config: Any, token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The image inputs of the forward; without token types it would let tokens read backwards only."""
    return {
        "pixel_values": torch.cat([image.pixel_values for image in images]),
        "token_type_ids": torch.zeros_like(token_ids),
    }


FAMILY = Family(
    name="PaliGemma 2",
    architecture="PaliGemmaForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        complete_text=with_first_token,
        published=f"{IMAGE_TOKEN}{QUESTION}",
        fallback_template=TEMPLATE,
    ),
    vision=replace(
        gemma3.FAMILY.vision,
        image_inputs=image_inputs,
        validate_processor=validate_processor,
    ),
    decoder=Decoder(
        positions=positions,
        shares_image_prefix=False,
        images_read_ahead=True,
        blocks=blocks,
        attention=None,  # eager in the decoder, whose scores are softcapped
        adjust_logits=softcapped_logits,
    ),
    stored=StoredTensors(older_names=llava.OLDER_NAMES),
    reference=Reference(tower_feature=gemma3.FAMILY.reference.tower_feature, forward_inputs=forward_inputs),
)

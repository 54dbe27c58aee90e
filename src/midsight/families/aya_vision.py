"""Aya Vision: tiles and then the whole image, each with its name before it; most of the decoder's layers slide.

Source of the prompt: the one that vLLM has for CohereLabs/aya-vision-8b, and transformers' processing_aya_vision.py for
what it writes for an image; of tiles and modules: image_processing_got_ocr2.py and modeling_aya_vision.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from midsight.errors import MidsightError, ModelFileError
from midsight.families import internvl, llava
from midsight.families.family import Family, StoredTensors
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels
from midsight.families.squares import Squares, patches_per_side
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "<|IMG_PATCH|>"  # noqa: S105  (a token of the vocabulary, no password)
START, END = "<|START_OF_IMG|>", "<|END_OF_IMG|>"
SQUARES = Squares(vision_tower=llava.VISION_TOWER, projector=llava.PROJECTOR, feature=-1)


def tokens_of_tile(config: Any) -> int:
    """Image tokens of one tile."""
    return (patches_per_side(config) // config.downsample_factor) ** 2


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for another feature layer than the published one, and for tiles that do not fit it."""
    used = (config.vision_config.model_type, config.vision_feature_layer, config.vision_feature_select_strategy)
    if used != ("siglip_vision_model", -1, "full"):
        raise MidsightError(
            f"config.json has the encoder {used[0]} with feature layer {used[1]} and selection {used[2]}, and midsight "
            "knows Aya Vision with siglip_vision_model, -1 and full; use another model."
        )
    takes = (config.vision_config.image_size, tokens_of_tile(config))
    tokens = (processor.img_size // processor.patch_size) ** 2 if hasattr(processor, "img_size") else takes[1]
    makes = (processor.image_processor.size["height"], tokens)
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make tiles of {makes[0]} px and {makes[1]} tokens, "
            f"and config.json has {takes[0]} and {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The tiles, each after its name."""
    each = tokens_of_tile(config)
    return internvl.tile_inputs(processor, image, pixels, config, each, lambda tiles: image_text(tiles, each))


def image_text(tiles: int, each: int) -> str:
    """What the processor writes for an image: numbered tiles of `each` image tokens, the whole image last."""
    names = [*(f"TILE_{number}" for number in range(1, tiles)), "TILE_GLOBAL"]
    return START + "".join(name + IMAGE_TOKEN * each for name in names) + END


def scale_logits(model: nn.Module) -> tuple[str, ...]:
    """Multiplies the head's output by the decoder's `logit_scale`, as Cohere's own class for text does."""
    hf_model: Any = model
    scale, head = hf_model.config.text_config.logit_scale, hf_model.lm_head
    if getattr(head, "is_scaled", False):
        return ()

    def multiply(_head: nn.Module, _args: Any, logits: Tensor) -> Tensor:
        return logits * scale

    head.register_forward_hook(multiply)
    head.is_scaled = True
    return (
        f"lm_head: logits are multiplied by logit_scale, {scale}, as the decoder was trained; transformers leaves it "
        "out, so that its probabilities are too certain",
    )


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"SigLIP 2, {vision.num_hidden_layers} layers, tiles of {vision.image_size} px in patches of "
        f"{vision.patch_size}, and the whole image"
    )


FAMILY = Family(
    name="Aya Vision",
    architecture="AyaVisionForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        template_token="<image>",  # noqa: S106  (a token of the vocabulary)
        placeholder=r"<\|(START_OF_IMG|END_OF_IMG|IMG_PATCH|IMG_LINE_BREAK)\|>",
        published=(
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>{question}<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        ),
    ),
    vision=replace(
        SQUARES.vision(),
        describe=describe_encoder,
        feature_source="vision_tower hidden_states[-1], before its norm",
        image_inputs=image_inputs,
        validate_processor=validate_processor,
    ),
    stored=StoredTensors(older_names=llava.OLDER_NAMES, fixes=scale_logits),
    reference=SQUARES.reference(),
)

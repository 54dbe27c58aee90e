"""Gemma 3n: MobileNetV5, which is timm's, and decoder layers with four streams, of which one is computed.

Source of the prompt: the chat template of google/gemma-3n-E4B-it, and transformers' processing_gemma3n.py for what it
writes around an image; of the modules: transformers' modeling_gemma3n.py and timm's mobilenetv5.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from midsight.errors import ModelFileError
from midsight.families import llava
from midsight.families.family import Decoder, Family, Reference, StoredTensors, Vision, softcapped_logits
from midsight.families.fast_vlm import by_patch, require_encoder
from midsight.families.inputs import DecoderInputs, EncodedImage, ImageInputs, insert_image_embeddings
from midsight.families.resizing import Pixels
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.token_layout import TokenLayout

IMAGE_TOKEN = "<image_soft_token>"  # noqa: S105  (a token of the vocabulary, no password)
START, END = "<start_of_image>", "<end_of_image>"
EMBEDDER = "model.embed_vision"
ENCODER = ("gemma3n_vision", "mobilenetv5_300m_enc")
"""Type and name of the encoder in the config."""
ENCODER_ARGUMENTS = {"channel_multiplier", "msfa_output_resolution"}
"""What may decide its shape; others of timm's arguments name files of weights."""
PLACE_PX = 48
"""Side of a place: the encoder halves the square four times, and then averages three by three."""


def validate_config(config: Any) -> None:
    """Raises MidsightError for another encoder than the published one."""
    require_encoder(config, "Gemma 3n", ENCODER, ENCODER_ARGUMENTS)


def validate_processor(processor: Any, config: Any) -> None:
    """Raises ModelFileError if the processor makes other squares, or writes another number of image tokens."""
    tokens = config.vision_soft_tokens_per_image
    makes = (processor.image_processor.size["height"], getattr(processor, "image_seq_length", tokens))
    if makes != (crop_px(config), tokens):
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make squares of {makes[0]} px and {makes[1]} tokens, "
            f"and config.json has {tokens} image tokens, which is {crop_px(config)} px"
        )


def patches_per_side(config: Any) -> int:
    """Places in a row of the encoder's feature map."""
    return math.isqrt(config.vision_soft_tokens_per_image)


def crop_px(config: Any) -> int:
    """Side of the square, in pixels."""
    return patches_per_side(config) * PLACE_PX


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """One square, and the text that the processor writes for it."""
    square = llava.square_inputs(processor, image, pixels, patches_per_side(config))
    return replace(square, text=f"\n\n{START}{IMAGE_TOKEN * square.tokens}{END}\n\n")


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The encoder's output after its last norm for each image, [1, places, vision width]."""
    tower: Any = model.get_submodule(llava.VISION_TOWER)
    yield from encode_tiles(tower, images, lambda squares: by_patch(tower(squares, do_pooling=False).last_hidden_state))


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Every place of the feature map, scaled, normed and projected."""
    embedder = model.get_submodule(EMBEDDER)
    return embedder(inputs_embeds=features * features.shape[-1] ** 0.5).flatten(0, 1)


def decoder_inputs(
    model: nn.Module, token_ids: Tensor, layouts: Sequence[TokenLayout], images: Sequence[Sequence[EncodedImage]]
) -> DecoderInputs:
    """Token embeddings with those of the images and of the tokens around them, and each layer's own embeddings."""
    hf_model: Any = model
    parts, config = hf_model.model, hf_model.config
    inputs = insert_image_embeddings(model, token_ids, layouts, images)
    embeddings: Any = inputs.prefill["inputs_embeds"]
    start = parts.embed_vision.vocab_offset
    around = (token_ids >= start) & (token_ids < parts.embed_audio.vocab_offset) & (token_ids != config.image_token_id)
    own = parts.embed_vision(input_ids=token_ids.clamp(start, start + parts.embed_vision.vocab_size - 1))
    return DecoderInputs(
        {
            "inputs_embeds": torch.where(around[..., None], own.to(embeddings), embeddings),
            "per_layer_inputs": parts.language_model.get_per_layer_inputs(token_ids),
        },
        inputs.later,
    )


def active_stream(config: Any, output: Tensor) -> Tensor:
    """The one of a layer's streams that attention and MLP compute; the others follow it."""
    return output[config.get_text_config().altup_active_idx]


def image_marks(config: Any) -> tuple[int, ...]:
    """The end of an image, which has its embedding from the image side."""
    return (config.eoi_token_id,)


def tower_feature(output: Any, images: Sequence[ImageInputs]) -> list[Tensor]:
    """The tower's output; a copy, because transformers scales it in place afterwards."""
    return split_by_image(by_patch(output.last_hidden_state).clone(), images)


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    side = patches_per_side(config)
    return f"MobileNetV5, one square of {crop_px(config)} px in {side} x {side} places"


FAMILY = Family(
    name="Gemma 3n",
    architecture="Gemma3nForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        placeholder=f"{START}|{END}|<(start|end)_of_audio>|<audio_soft_token>",
        published=f"<bos><start_of_turn>user\n{IMAGE_TOKEN}{{question}}<end_of_turn>\n<start_of_turn>model\n",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower last_hidden_state, after its norm",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(1),
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=crop_px,
    ),
    decoder=Decoder(
        inputs=decoder_inputs,
        image_marks=image_marks,
        layer_state=active_stream,
        adjust_logits=softcapped_logits,
    ),
    stored=StoredTensors(unused_modules={"audio": "model.audio_tower"}),
    reference=Reference(tower_feature=tower_feature),
    validate_config=validate_config,
    needs={"timm": "fastvlm"},
)

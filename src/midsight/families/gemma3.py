"""Gemma 3: SigLIP's patches, pooled to 256 tokens that read each other in both directions; most layers slide.

Source of the prompt: the chat template of google/gemma-3-4b-it, and transformers' processing_gemma3.py for what it
writes around an image; of the modules: transformers' modeling_gemma3.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Gemma3ImageProcessor, Gemma3ImageProcessorPil

from midsight.errors import MidsightError, ModelFileError
from midsight.families import llava
from midsight.families.family import Decoder, Family, Reference, StoredTensors, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels, with_resizing
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "<image_soft_token>"  # noqa: S105  (a token of the vocabulary, no password)
START, END = "<start_of_image>", "<end_of_image>"


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for a processor that cuts crops, ModelFileError for one that does not fit the encoder."""
    image_processor = processor.image_processor
    if image_processor.do_pan_and_scan:
        raise MidsightError(
            "preprocessor_config.json asks for do_pan_and_scan, which midsight does not do; set it to null, as in the "
            "published folders."
        )
    makes = (image_processor.size["height"], getattr(processor, "image_seq_length", config.mm_tokens_per_image))
    takes = (config.vision_config.image_size, config.mm_tokens_per_image)
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make images of {makes[0]} px and {makes[1]} tokens, "
            f"and config.json has {takes[0]} and {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """One square, and the text that the processor writes for it."""
    image_processor = with_resizing(
        processor.image_processor, pixels, pil=Gemma3ImageProcessorPil, tensors=Gemma3ImageProcessor
    )
    side, tokens = llava.patches_per_side(config), config.mm_tokens_per_image
    return ImageInputs(
        pixel_values=image_processor(image, return_tensors="pt")["pixel_values"],
        patch_mask=torch.ones((1, side, side), dtype=torch.bool),
        original_size=image.size,
        grid=(1, 1),
        tokens=tokens,
        attended=tokens,
        text=f"\n\n{START}{IMAGE_TOKEN * tokens}{END}\n\n",
    )


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The encoder's output after its last norm, for each image: [1, patches, vision width]."""
    tower: Any = model.get_submodule(llava.VISION_TOWER)
    yield from encode_tiles(tower, images, lambda tiles: tower(tiles).last_hidden_state)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Patches pooled to tokens, normed and projected."""
    return model.get_submodule(llava.PROJECTOR)(features).flatten(0, 1)


def forward_inputs(config: Any, token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The image inputs of the forward; without token types it would let image tokens read backwards only."""
    types = (token_ids == config.image_token_id).long()
    return {"pixel_values": torch.cat([image.pixel_values for image in images]), "token_type_ids": types}


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"SigLIP, {vision.num_hidden_layers} layers, one square of {vision.image_size} px in patches of "
        f"{vision.patch_size}"
    )


FAMILY = Family(
    name="Gemma 3",
    architecture="Gemma3ForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        template_token=START,
        placeholder=f"{END}|{IMAGE_TOKEN}",
        published=f"<bos><start_of_turn>user\n{START}{{question}}<end_of_turn>\n<start_of_turn>model\n",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower last_hidden_state, after its norm",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(1),
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=lambda config: config.vision_config.image_size,
    ),
    decoder=Decoder(images_read_ahead=True),
    stored=StoredTensors(older_names=llava.OLDER_NAMES),
    reference=Reference(
        tower_feature=lambda output, images: split_by_image(output.last_hidden_state, images),
        forward_inputs=forward_inputs,
    ),
)

"""Gemma 4: images of any shape in at most 280 tokens; decoder layers with embeddings of their own and shared keys.

Source of the prompt: the chat template of google/gemma-4-E4B-it, and transformers' processing_gemma4.py for what it
writes around an image; of the modules: transformers' modeling_gemma4.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Gemma4ImageProcessor, Gemma4ImageProcessorPil

from midsight.errors import MidsightError, ModelFileError
from midsight.families.family import Decoder, Family, Reference, StoredTensors, Vision, softcapped_logits
from midsight.families.inputs import (
    DecoderInputs,
    EncodedImage,
    ImageInputs,
    image_blocks,
    insert_image_embeddings,
)
from midsight.families.placement import device_of
from midsight.families.resizing import Pixels, with_resizing
from midsight.families.tiles import groups_of
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.token_layout import TokenLayout

IMAGE_TOKEN = "<|image|>"  # noqa: S105  (a token of the vocabulary, no password)
START, END = "<|image>", "<image|>"
VISION_TOWER = "model.vision_tower"
ENCODER = f"{VISION_TOWER}.encoder"
EMBEDDER = "model.embed_vision"
PATCHES_PER_CALL = 16384
"""Maximum number of patches of several images in one encoder call, which bounds its memory."""
READ_AHEAD = (None, "vision")
"""Values of use_bidirectional_attention: whether image tokens read each other in both directions."""


def validate_config(config: Any) -> None:
    """Raises MidsightError for a model without images, and for one whose text reads ahead too."""
    if config.vision_config is None:
        raise MidsightError("config.json has no vision_config, so the model takes no images; use another model.")
    found = config.get_text_config().use_bidirectional_attention
    if found not in READ_AHEAD:
        raise MidsightError(
            f"config.json has use_bidirectional_attention {found}, and midsight knows Gemma 4 with null and vision; "
            "use another model."
        )


def validate_processor(processor: Any, config: Any) -> None:
    """Raises ModelFileError if the processor cuts or joins other patches than the encoder."""
    vision, image_processor = config.vision_config, processor.image_processor
    takes = (vision.patch_size, vision.pooling_kernel_size)
    makes = (image_processor.patch_size, image_processor.pooling_kernel_size)
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json has patches of {makes[0]} px, {makes[1]} x {makes[1]} a token, and config.json "
            f"has {takes[0]} px and {takes[1]} x {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The image's patches line by line, then padding up to the processor's maximum; `grid` counts image tokens."""
    image_processor = with_resizing(
        processor.image_processor, pixels, pil=Gemma4ImageProcessorPil, tensors=Gemma4ImageProcessor
    )
    processed = image_processor(image, return_tensors="pt")
    columns, rows = (processed["image_position_ids"][0].amax(dim=0) + 1).tolist()
    side = config.vision_config.pooling_kernel_size
    grid = (rows // side, columns // side)
    return ImageInputs(
        pixel_values=processed["pixel_values"][0],
        patch_mask=torch.ones((1, rows, columns), dtype=torch.bool),
        original_size=image.size,
        grid=grid,
        tokens=grid[0] * grid[1],
        attended=grid[0] * grid[1],
        text=f"{START}{IMAGE_TOKEN * (grid[0] * grid[1])}{END}",
    )


def patch_positions(image: ImageInputs) -> Tensor:
    """Column and row of every patch, -1 for padding: int64 [patches, 2]."""
    _, rows, columns = image.patch_mask.shape
    positions = torch.full((len(image.pixel_values), 2), -1)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    positions[: rows * columns] = torch.stack([column, row], dim=-1).flatten(0, 1)
    return positions


def useful_patches(image: ImageInputs) -> Tensor:
    """The patches that are not padding: bool [patches]."""
    return torch.arange(len(image.pixel_values)) < image.patch_mask.numel()


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """Output of the encoder's last layer for each image, [patches, vision width]; padding has some too."""
    tower: Any = model.get_submodule(VISION_TOWER)
    device = device_of(tower.patch_embedder)
    for group in groups_of(images, PATCHES_PER_CALL):
        positions = torch.stack([patch_positions(image) for image in group]).to(device)
        padding = (positions == -1).all(dim=-1)
        patches = torch.stack([image.pixel_values for image in group]).to(tower.patch_embedder.input_proj.weight)
        yield from tower.encoder(
            inputs_embeds=tower.patch_embedder(patches, positions, padding),
            attention_mask=~padding,
            pixel_position_ids=positions,
        ).last_hidden_state


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """Patches averaged in squares, scaled, normed and projected."""
    tower: Any = model.get_submodule(VISION_TOWER)
    positions = patch_positions(image)[None].to(features.device)
    pooled, kept = tower.pooler(
        hidden_states=features[None],
        pixel_position_ids=positions,
        padding_positions=(positions == -1).all(dim=-1),
        output_length=len(features) // tower.config.pooling_kernel_size**2,
    )
    pooled = pooled[kept]
    if tower.config.standardize:
        pooled = (pooled - tower.std_bias.to(pooled)) * tower.std_scale.to(pooled)
    return model.get_submodule(EMBEDDER)(pooled.to(features.dtype))


def blocks(config: Any, token_ids: Tensor, layouts: Sequence[TokenLayout]) -> Tensor:
    """The image tokens of each image, if the config says that they read each other; else no token does."""
    numbers = image_blocks(config, token_ids, layouts)
    return numbers if config.get_text_config().use_bidirectional_attention else torch.full_like(numbers, -1)


def decoder_inputs(
    model: nn.Module, token_ids: Tensor, layouts: Sequence[TokenLayout], images: Sequence[Sequence[EncodedImage]]
) -> DecoderInputs:
    """Token embeddings with those of the images, and each layer's own embeddings, if it has some.

    Image tokens have those of padding.
    """
    hf_model: Any = model
    decoder, text = hf_model.model.language_model, hf_model.config.get_text_config()
    inputs = insert_image_embeddings(model, token_ids, layouts, images)
    if not text.hidden_size_per_layer_input:
        return inputs
    words = token_ids.masked_fill(token_ids == hf_model.config.image_token_id, text.pad_token_id)
    return DecoderInputs({**inputs.prefill, "per_layer_inputs": decoder.get_per_layer_inputs(words)}, inputs.later)


def forward_inputs(config: Any, token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The image inputs of the forward; without token types it would let image tokens read backwards only."""
    return {
        "pixel_values": torch.stack([image.pixel_values for image in images]),
        "image_position_ids": torch.stack([patch_positions(image) for image in images]),
        "mm_token_type_ids": (token_ids == config.image_token_id).long(),
    }


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    side = vision.pooling_kernel_size
    return (
        f"ViT, {vision.num_hidden_layers} layers, any shape in patches of {vision.patch_size}, {side} x {side} a token"
    )


FAMILY = Family(
    name="Gemma 4",
    architecture="Gemma4ForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        placeholder=r"<\|?(image|audio)\|?>|<\|video\|>",
        published=f"<bos><|turn>user\n\n\n{IMAGE_TOKEN}\n\n{{question}}<turn|>\n<|turn>model\n",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower.encoder last_hidden_state, before patches are averaged",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=useful_patches,
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
    ),
    decoder=Decoder(
        inputs=decoder_inputs,
        images_read_ahead=True,
        blocks=blocks,
        only_sliding_layers_read_ahead=True,
        attention=None,  # eager in the audio tower, which knows no other
        adjust_logits=softcapped_logits,
    ),
    stored=StoredTensors(unused_modules={"audio": "model.audio_tower", "audio projection": "model.embed_audio"}),
    reference=Reference(
        tower_feature=lambda output, _images: list(output.last_hidden_state),
        forward_inputs=forward_inputs,
        module=ENCODER,
    ),
    validate_config=validate_config,
)

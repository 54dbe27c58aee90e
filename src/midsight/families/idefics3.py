"""Idefics3: a grid of square tiles and then the whole image, each with markers around its tokens.

Source of the prompt: the chat template of HuggingFaceM4/Idefics3-8B-Llama3, and transformers' processing_idefics3.py
for what it writes for an image; of tiles and modules: image_processing_idefics3.py and modeling_idefics3.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from midsight.errors import ModelFileError
from midsight.families.family import Family, Modules, Reference, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.llava import patches_per_side
from midsight.families.resizing import Pixels, with_own_resizing
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "<image>"  # noqa: S105  (a token of the vocabulary, no password)
AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
VISION_TOWER = "model.vision_model"
CONNECTOR = "model.connector"


def tokens_of_tile(config: Any) -> int:
    """Image tokens of one tile: its patches, joined in squares."""
    return patches_per_side(config) ** 2 // config.scale_factor**2


def validate_processor(processor: Any, config: Any) -> None:
    """Raises ModelFileError if the processor makes other tiles than the encoder takes, or other numbers of tokens."""
    takes = (config.vision_config.image_size, tokens_of_tile(config))
    makes = (processor.image_processor.max_image_size["longest_edge"], getattr(processor, "image_seq_len", takes[1]))
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make tiles of {makes[0]} px and {makes[1]} tokens, "
            f"and config.json has {takes[0]} and {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The tiles of the scaled image line by line, then the whole image; `grid` counts the tiles, none if it is small.

    Nothing is padded: the image is stretched to full tiles.
    """
    image_processor = with_own_resizing(processor.image_processor, pixels)
    processed = image_processor(image, return_row_col_info=True, return_tensors="pt")
    grid = (processed["rows"][0][0], processed["cols"][0][0])
    side, tile_tokens = patches_per_side(config), tokens_of_tile(config)
    tiles = processed["pixel_values"][0]
    tokens = len(tiles) * tile_tokens
    return ImageInputs(
        pixel_values=tiles,
        patch_mask=torch.ones((len(tiles), side, side), dtype=torch.bool),
        original_size=image.size,
        grid=grid,
        tokens=tokens,
        attended=tokens,
        text=image_text(grid, tile_tokens),
    )


def image_text(grid: tuple[int, int], tile_tokens: int) -> str:
    """What the processor writes for an image."""
    rows, columns = grid
    tile = IMAGE_TOKEN * tile_tokens
    lines = [
        "".join(f"{AROUND}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
        for row in range(1, rows + 1)
    ]
    whole = f"{AROUND}{WHOLE}{tile}{AROUND}"
    return "".join([*lines, "\n", whole]) if lines else whole


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The encoder's output after its last norm, for each image: [tiles, patches, vision width]."""
    tower: Any = model.get_submodule(VISION_TOWER)
    yield from encode_tiles(tower, images, lambda tiles: tower(tiles).last_hidden_state)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Patches joined in squares and projected."""
    return model.get_submodule(CONNECTOR)(features).flatten(0, 1)


def forward_inputs(_config: Any, _token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The tiles of all images, and a mask that leaves none of their pixels out."""
    tiles = torch.cat([image.pixel_values for image in images])[None]
    return {"pixel_values": tiles, "pixel_attention_mask": torch.ones_like(tiles[:, :, 0], dtype=torch.int64)}


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"SigLIP, {vision.num_hidden_layers} layers, tiles of {vision.image_size} px in patches of "
        f"{vision.patch_size}, and the whole image"
    )


def published_prompt(first_token: str) -> str:
    """The published prompt, which begins with this token."""
    return f"{first_token}User:{IMAGE_TOKEN}{{question}}<end_of_utterance>\nAssistant:"


FAMILY = Family(
    name="Idefics3",
    architecture="Idefics3ForConditionalGeneration",
    modules=Modules(
        decoder="model.text_model",
        layers="model.text_model.layers",
        final_norm="model.text_model.norm",
        token_embedding="model.text_model.embed_tokens",  # noqa: S106  (a module path)
        vision_tower=VISION_TOWER,
    ),
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        published=published_prompt("<|begin_of_text|>"),
        placeholder=rf"{AROUND}|{WHOLE}|<row_\d+_col_\d+>|<\|(endoftext|end_of_text)\|>",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_model last_hidden_state, after its norm",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(1),
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=lambda config: config.vision_config.image_size,
    ),
    reference=Reference(
        tower_feature=lambda output, images: split_by_image(output.last_hidden_state, images),
        forward_inputs=forward_inputs,
    ),
)

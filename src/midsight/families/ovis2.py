"""Ovis2: the whole image and then square tiles; joined patches become a mixture of the rows of a visual vocabulary.

Source of the prompt: transformers' script that converts AIDC-AI/Ovis2-2B, and processing_ovis2.py for what it writes
for an image; of tiles and modules: image_processing_ovis2.py and modeling_ovis2.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Ovis2ImageProcessor, Ovis2ImageProcessorPil

from midsight.errors import MidsightError, ModelFileError
from midsight.families.family import Decoder, Family, Reference, Vision
from midsight.families.inputs import DecoderInputs, EncodedImage, ImageInputs, insert_image_embeddings
from midsight.families.llava import VISION_TOWER, patches_per_side
from midsight.families.resizing import Pixels, with_resizing
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.token_layout import TokenLayout

IMAGE, IMAGE_TOKEN = "<image>", "<IMG_ATOM>"
START, WHOLE_END, COLUMN_END, ROW_END, END = "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"
"""The indicators, whose embeddings are rows of the visual vocabulary too."""
ENCODER = f"{VISION_TOWER}.transformer"


def tokens_of_tile(config: Any) -> int:
    """Image tokens of one tile."""
    return math.ceil(patches_per_side(config) / config.vision_config.hidden_stride) ** 2


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for a mixture other than softmax's, and ModelFileError for tiles that do not fit."""
    vision = config.vision_config
    if vision.tokenize_function != "softmax":
        raise MidsightError(
            f"config.json has the tokenize_function {vision.tokenize_function}, and midsight knows Ovis2 with softmax; "
            "use another model."
        )
    takes = (vision.image_size, tokens_of_tile(config))
    makes = (processor.image_processor.size["height"], getattr(processor, "image_seq_length", takes[1]))
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make tiles of {makes[0]} px and {makes[1]} tokens, "
            f"and config.json has {takes[0]} and {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The whole image, then the tiles line by line if there are several; `grid` counts those."""
    image_processor = with_resizing(
        processor.image_processor, pixels, pil=Ovis2ImageProcessorPil, tensors=Ovis2ImageProcessor
    )
    processed = image_processor(image, return_tensors="pt")
    tiles, (rows, columns) = processed["pixel_values"], processed["grids"][0].tolist()
    side, tile = patches_per_side(config), IMAGE_TOKEN * tokens_of_tile(config)
    lines = ROW_END.join([COLUMN_END.join([tile] * columns)] * rows) if len(tiles) > 1 else ""
    tokens = len(tiles) * tokens_of_tile(config)
    return ImageInputs(
        pixel_values=tiles,
        patch_mask=torch.ones((len(tiles), side, side), dtype=torch.bool),
        original_size=image.size,
        grid=(rows, columns),
        tokens=tokens,
        attended=tokens,
        text=f"{START}{tile}{WHOLE_END}{lines}{END}",
    )


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The encoder's output after its last norm, for each image: [tiles, patches, vision width]."""
    encoder: Any = model.get_submodule(ENCODER)
    yield from encode_tiles(encoder, images, lambda tiles: encoder(tiles).last_hidden_state)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Patches joined in squares, each as a mixture of the rows of the visual vocabulary."""
    hf_model: Any = model
    tower: Any = model.get_submodule(VISION_TOWER)
    logits = tower.head_norm(tower.head_linear(joined(features, tower.config.hidden_stride)))
    shares = nn.functional.pad(logits.softmax(dim=-1), (0, tower.num_visual_indicator_tokens))
    return hf_model.model.visual_embeddings_table(shares).flatten(0, 1)


def joined(features: Tensor, side: int) -> Tensor:
    """Squares of `side` x `side` patches, padded with zeros: [tiles, squares, side x side x width]."""
    tiles, patches, width = features.shape
    lines = round(patches**0.5)
    padding = -lines % side
    rows = nn.functional.pad(features.view(tiles, lines, lines, width), (0, 0, 0, padding, 0, padding))
    count = (lines + padding) // side
    return rows.view(tiles, count, side, count, side, width).transpose(2, 3).reshape(tiles, count * count, -1)


def decoder_inputs(
    model: nn.Module, token_ids: Tensor, layouts: Sequence[TokenLayout], images: Sequence[Sequence[EncodedImage]]
) -> DecoderInputs:
    """Token embeddings with those of the images, and those of the indicators."""
    hf_model: Any = model
    inputs = insert_image_embeddings(model, token_ids, layouts, images)
    embeddings: Any = inputs.prefill["inputs_embeds"]
    indicators = hf_model.config.visual_indicator_token_ids
    table = hf_model.model.visual_embeddings_table
    last = hf_model.config.vision_config.vocab_size
    rows = table(torch.arange(last - len(indicators), last, device=token_ids.device)).to(embeddings.device)
    for token_id, row in zip(indicators, rows, strict=True):
        embeddings = torch.where((token_ids == token_id)[..., None], row, embeddings)
    return DecoderInputs({**inputs.prefill, "inputs_embeds": embeddings}, inputs.later)


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"AIMv2, {vision.num_hidden_layers} layers, the whole image and tiles of {vision.image_size} px in patches of "
        f"{vision.patch_size}"
    )


FAMILY = Family(
    name="Ovis2",
    architecture="Ovis2ForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        template_token=IMAGE,
        placeholder="|".join((IMAGE_TOKEN, START, WHOLE_END, COLUMN_END, ROW_END, END)),
        published=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{IMAGE}\n{{question}}<|im_end|>\n<|im_start|>assistant\n"
        ),
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower.transformer last_hidden_state, after its norm",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(1),
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=lambda config: config.vision_config.image_size,
    ),
    decoder=Decoder(inputs=decoder_inputs, image_marks=lambda config: config.visual_indicator_token_ids),
    reference=Reference(
        tower_feature=lambda output, images: split_by_image(output.last_hidden_state, images), module=ENCODER
    ),
)

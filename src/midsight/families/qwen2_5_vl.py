"""Qwen2.5-VL: patches in a grid of any size, merged two by two; the decoder's positions have three axes.

Source of the prompt: the chat template of Qwen/Qwen2.5-VL-7B-Instruct; of grids, positions and modules:
transformers' image_processing_qwen2_vl.py and modeling_qwen2_5_vl.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

from midsight.errors import ModelFileError, SampleError, counted
from midsight.families.family import Decoder, Family, Modules, Reference, StoredTensors, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.placement import device_of
from midsight.families.resizing import Pixels, with_resizing
from midsight.families.tiles import groups_of, split_by_image
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.token_layout import TokenLayout

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105  (a token of the vocabulary, no password)
IMAGE_MARKUP = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
VISION_TOWER = "model.visual"
MAX_ASPECT_RATIO = 200
PATCHES_PER_CALL = 16384
"""Maximum number of patches of several images in one encoder call, which bounds its memory; one image may have more."""


def validate_processor(processor: Any, config: Any) -> None:
    """Raises ModelFileError if the processor cuts other patches than the encoder takes."""
    vision, image_processor = config.vision_config, processor.image_processor
    takes = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    makes = (image_processor.patch_size, image_processor.temporal_patch_size, image_processor.merge_size)
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json has patch, temporal and merge sizes {makes}, and config.json {takes}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, _config: Any) -> ImageInputs:
    """Runs the folder's own image processor on one RGB image; `grid` counts image tokens.

    Raises SampleError for an image more than 200 times as long as it is wide.
    """
    image_processor = with_resizing(
        processor.image_processor, pixels, pil=Qwen2VLImageProcessorPil, tensors=Qwen2VLImageProcessor
    )
    return packed_inputs(image_processor, image)


def packed_inputs(image_processor: Any, image: Image.Image) -> ImageInputs:
    """The same with this image processor."""
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise SampleError(
            f"The image of {image.size[0]} x {image.size[1]} pixels is more than {MAX_ASPECT_RATIO} times as long as "
            "it is wide, which the model's image processor does not take; crop or pad it."
        )
    processed = image_processor(image, return_tensors="pt")
    _, rows, columns = processed["image_grid_thw"][0].tolist()
    grid = (rows // image_processor.merge_size, columns // image_processor.merge_size)
    return ImageInputs(
        pixel_values=processed["pixel_values"],
        patch_mask=torch.ones((1, rows, columns), dtype=torch.bool),
        original_size=image.size,
        grid=grid,
        tokens=grid[0] * grid[1],
        attended=grid[0] * grid[1],
    )


def patches_of(images: Sequence[ImageInputs]) -> tuple[Tensor, Tensor]:
    """The patches of several images, [patches, values], and frames, rows and columns of each, [images, 3]."""
    grids = torch.tensor([[1, *image.patch_mask.shape[1:]] for image in images])
    return torch.cat([image.pixel_values for image in images]), grids


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """Output of the last block for each image, [patches, vision width], in the encoder's order: window by window."""
    tower: Any = model.get_submodule(VISION_TOWER)
    device = device_of(tower.patch_embed)
    for group in groups_of(images, PATCHES_PER_CALL):
        patches, grids = patches_of(group)
        features = tower(patches.to(device), grid_thw=grids.to(device)).last_hidden_state
        yield from split_by_image(features, group)


def window_order(grid: tuple[int, int], side: int | None) -> Tensor:
    """Index of every image token, counted line by line, in the encoder's order: windows of side x side tokens.

    int64 [image tokens]. `side` is None if the encoder has no windows.
    """
    rows, columns = grid
    index = torch.arange(rows * columns).view(rows, columns)
    if side is None:
        return index.flatten()
    corners = [(row, column) for row in range(0, rows, side) for column in range(0, columns, side)]
    return torch.cat([index[row : row + side, column : column + side].flatten() for row, column in corners])


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """Merges patches two by two, and puts the tokens in the order of the image's lines."""
    tower: Any = model.get_submodule(VISION_TOWER)
    vision = tower.config
    window_px = getattr(vision, "window_size", None)  # Qwen2-VL attends to the whole image in every block
    side = window_px // vision.spatial_merge_size // vision.patch_size if window_px else None
    return tower.merger(features)[window_order(image.grid, side).argsort().to(features.device)]


def positions(layout: TokenLayout, images: Sequence[ImageInputs]) -> Tensor:
    """Time, row and column of every token, int64 [3, tokens].

    Text has the same position on all axes. An image's tokens start at the next position and have one time. The text
    after an image continues past its longer side. Raises SampleError for images with nothing between them.
    """
    if len(layout.image) != len(images):
        raise SampleError(
            f"The prompt has {len(images)} images with nothing between them; use a chat template that encloses each."
        )
    parts: list[Tensor] = []
    position = cursor = 0
    for span, image in zip(layout.image, images, strict=True):
        text = span.start - cursor
        parts.append((position + torch.arange(text)).expand(3, text))
        position += text
        rows, columns = image.grid
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(position + torch.stack([torch.zeros_like(row), row, column]).flatten(1))
        position += max(rows, columns)
        cursor = span.stop
    text = len(layout.prompt) - cursor
    parts.append((position + torch.arange(text)).expand(3, text))
    return torch.cat(parts, dim=1)


def forward_inputs(config: Any, token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The image inputs of the forward; without token types it would take every token for text."""
    patches, grids = patches_of(images)
    types = (token_ids == config.image_token_id).long()
    return {"pixel_values": patches, "image_grid_thw": grids, "mm_token_type_ids": types}


def tower_feature(output: Any, images: Sequence[ImageInputs]) -> list[Tensor]:
    """Output of the last block, cut into images."""
    return split_by_image(output.last_hidden_state, images)


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return f"ViT, {counted(vision.depth, 'layer')}, any size in patches of {vision.patch_size}"


FAMILY = Family(
    name="Qwen2.5-VL",
    architecture="Qwen2_5_VLForConditionalGeneration",
    modules=Modules(vision_tower=VISION_TOWER),
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        image_text=IMAGE_MARKUP,
        published=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{IMAGE_MARKUP}{{question}}<|im_end|>\n<|im_start|>assistant\n"
        ),
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="visual last_hidden_state, before the merger",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(),
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
    ),
    decoder=Decoder(positions=positions),
    stored=StoredTensors(
        older_names={r"^visual\.": "model.visual.", r"^model\.(?!visual\.|language_model\.)": "model.language_model."}
    ),
    reference=Reference(tower_feature=tower_feature, forward_inputs=forward_inputs),
)

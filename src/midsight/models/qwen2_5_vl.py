"""Qwen2.5-VL: patches of any grid, merged two by two into a decoder whose positions have three axes.

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

from midsight.errors import MidsightError, SampleError
from midsight.models.adapter import Adapter, ImageInputs, Pixels, PromptText, place_in_sequence, submodule
from midsight.models.layout import TokenLayout
from midsight.models.resizing import with_resizing

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105  (a token of the vocabulary, no password)
DEFAULT_SYSTEM = "You are a helpful assistant."
VISION_TOWER = "model.visual"
MAX_ASPECT_RATIO = 200
PATCHES_PER_CALL = 16384
"""Patches of several images that go through the encoder together, which bounds its memory; one image may have more."""


def render_prompt(user_text: str, question: tuple[int, int], n_images: int, system: str | None) -> PromptText:
    """A system turn, the template's own by default, the user's turn, images first, and the head of the assistant's."""
    images = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>" * n_images
    before = f"<|im_start|>system\n{DEFAULT_SYSTEM if system is None else system}<|im_end|>\n<|im_start|>user\n{images}"
    start, stop = question
    text = f"{before}{user_text}<|im_end|>\n<|im_start|>assistant\n"
    return PromptText(text, (len(before) + start, len(before) + stop))


def check_image_processor(image_processor: Any, config: Any) -> None:
    """Raises MidsightError where the processor cuts other patches than the encoder takes."""
    vision = config.vision_config
    takes = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    makes = (image_processor.patch_size, image_processor.temporal_patch_size, image_processor.merge_size)
    if makes != takes:
        raise MidsightError(
            f"preprocessor_config.json has patch, temporal and merge sizes {makes}, and config.json {takes}; "
            "download both again."
        )


def image_inputs(image_processor: Any, image: Image.Image, pixels: Pixels, _config: Any) -> ImageInputs:
    """Runs the folder's own image processor on one RGB image; `grid` counts image tokens.

    Raises SampleError for an image more than 200 times as long as it is wide.
    """
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise SampleError(
            f"The image of {image.size[0]} x {image.size[1]} pixels is more than {MAX_ASPECT_RATIO} times as long as "
            "it is wide, which Qwen's image processor does not take; crop or pad it."
        )
    processor = with_resizing(image_processor, pixels, pil=Qwen2VLImageProcessorPil, tensors=Qwen2VLImageProcessor)
    processed = processor(image, return_tensors="pt")
    _, rows, columns = processed["image_grid_thw"][0].tolist()
    grid = (rows // processor.merge_size, columns // processor.merge_size)
    return ImageInputs(
        pixel_values=processed["pixel_values"],
        patch_mask=torch.ones((1, rows, columns), dtype=torch.bool),
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
    tower: Any = submodule(model, VISION_TOWER)
    device = tower.patch_embed.proj.weight.device
    groups: list[list[ImageInputs]] = []
    for image in images:
        last = sum(len(other.pixel_values) for other in groups[-1]) if groups else PATCHES_PER_CALL
        if last + len(image.pixel_values) > PATCHES_PER_CALL:
            groups.append([])
        groups[-1].append(image)
    for group in groups:
        patches, grids = patches_of(group)
        features = tower(patches.to(device), grid_thw=grids.to(device)).last_hidden_state
        yield from features.split([len(image.pixel_values) for image in group])


def window_order(grid: tuple[int, int], side: int | None) -> Tensor:
    """Index of every image token, line by line, in the order in which the encoder keeps them: windows of side x side.

    int64 [image tokens]; None where the encoder has no windows.
    """
    rows, columns = grid
    index = torch.arange(rows * columns).view(rows, columns)
    if side is None:
        return index.flatten()
    corners = [(row, column) for row in range(0, rows, side) for column in range(0, columns, side)]
    return torch.cat([index[row : row + side, column : column + side].flatten() for row, column in corners])


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """Merges two by two patches and puts the tokens in the order of the image's lines."""
    tower: Any = submodule(model, VISION_TOWER)
    vision = tower.config
    window_px = getattr(vision, "window_size", None)  # Qwen2-VL attends to the whole image in every block
    side = window_px // vision.spatial_merge_size // vision.patch_size if window_px else None
    return tower.merger(features)[window_order(image.grid, side).argsort().to(features.device)]


def positions(layout: TokenLayout, images: Sequence[ImageInputs]) -> Tensor:
    """Time, row and column of every token, int64 [3, tokens].

    Text counts on, the same on all axes; an image's tokens begin where the text stopped, all at one time,
    and the text behind goes on past its longer side.
    """
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
    """The image inputs of the forward; without the token types it would take every position for text's."""
    patches, grids = patches_of(images)
    types = (token_ids == config.image_token_id).long()
    return {"pixel_values": patches, "image_grid_thw": grids, "mm_token_type_ids": types}


ADAPTER = Adapter(
    family="Qwen2.5-VL",
    architecture="Qwen2_5_VLForConditionalGeneration",
    decoder="model.language_model",
    layers="model.language_model.layers",
    final_norm="model.language_model.norm",
    token_embedding="model.language_model.embed_tokens",  # noqa: S106  (a module path)
    lm_head="lm_head",
    vision_tower=VISION_TOWER,
    vision_encoder=lambda config: (
        f"ViT, {config.vision_config.depth} layers, any size in patches of {config.vision_config.patch_size}"
    ),
    vision_access="visual last_hidden_state, before the merger",
    image_token=IMAGE_TOKEN,
    image_token_id=lambda config: config.image_token_id,
    placeholder=None,
    default_pixels="pil",
    check_image_processor=check_image_processor,
    crop_px=None,
    processor_columns=None,
    lora_folder=None,
    unused_modules={},
    older_names={r"^visual\.": "model.visual.", r"^model\.(?!visual\.|language_model\.)": "model.language_model."},
    mends=lambda _: (),
    longrope_border=lambda _: None,
    vision_width=lambda config: config.vision_config.hidden_size,
    takes_system=True,
    render_prompt=render_prompt,
    image_inputs=image_inputs,
    encode=encode,
    useful_patches=lambda image: image.patch_mask.flatten(),
    image_embeddings=image_embeddings,
    positions=positions,
    decoder_inputs=place_in_sequence,
    shares_image_prefix=True,
    forward_inputs=forward_inputs,
    tower_feature=lambda output, images: list(output.last_hidden_state.split([len(i.pixel_values) for i in images])),
)

"""Phi-4-multimodal: a SigLIP encoder over crops, projected into a causal decoder with longrope.

Source of the prompt, the pixels and the crops: processing_phi4mm.py of
microsoft/Phi-4-multimodal-instruct; of the modules: transformers' modeling_phi4_multimodal.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from midsight.errors import MidsightError, SampleError
from midsight.models.adapter import (
    Adapter,
    ImageInputs,
    Pixels,
    PromptText,
    count_up,
    place_in_sequence,
    submodule,
)

IMAGE_TOKEN = "<|endoftext10|>"  # noqa: S105  (a token of the vocabulary, no password)
IMAGE_EMBED = "model.embed_tokens_extend.image_embed"
VISION_TOWER = f"{IMAGE_EMBED}.img_processor"
AUDIO_EMBED = "model.embed_tokens_extend.audio_embed"
SMALLEST_SIDE_PX = 10
CROPS_PER_CALL = 16
"""Crops that go through the encoder together, which bounds its memory."""


def render_prompt(user_text: str, question: tuple[int, int], n_images: int, system: str | None) -> PromptText:
    """`<|user|><|image_1|>{user text}<|end|><|assistant|>`, a system turn before it where one is given."""
    system_turn = f"<|system|>{system}<|end|>" if system else ""
    before = f"{system_turn}<|user|>{IMAGE_TOKEN * n_images}"
    start, stop = question
    return PromptText(f"{before}{user_text}<|end|><|assistant|>", (len(before) + start, len(before) + stop))


def crop_grid(width_px: int, height_px: int, crop_px: int, max_crops: int) -> tuple[int, int]:
    """Rows and columns of sub-crops that an image is laid over.

    As many as cover it at its own size; where that is more than `max_crops`, the grid whose aspect
    ratio is closest, and of equally close ones the last (they come in order of their number of
    crops) of which the image fills more than half.
    """
    columns, rows = math.ceil(width_px / crop_px), math.ceil(height_px / crop_px)
    if rows * columns <= max_crops:
        return rows, columns
    candidates = {(i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops // i + 1)}
    best, best_difference = (1, 1), math.inf
    for i, j in sorted(candidates, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width_px / height_px - i / j)
        fills_half = width_px * height_px > 0.5 * crop_px * crop_px * i * j
        if difference < best_difference or (difference == best_difference and fills_half):
            best, best_difference = (i, j), difference
    return best[1], best[0]


def resized_px(width_px: int, height_px: int, crop_px: int, max_crops: int) -> tuple[int, int]:
    """Width and height of the image, scaled to touch its crop grid's right or lower border.

    Raises SampleError for an image so thin that a side would be under 10 pixels.
    """
    rows, columns = crop_grid(width_px, height_px, crop_px, max_crops)
    grid_width, grid_height = columns * crop_px, rows * crop_px
    if grid_width / width_px < grid_height / height_px:
        size = grid_width, int(height_px * (grid_width / width_px))
    else:
        size = int(width_px * (grid_height / height_px)), grid_height
    if min(size) < SMALLEST_SIDE_PX:
        raise SampleError(
            f"The image of {width_px} x {height_px} pixels would be scaled to {size[0]} x {size[1]}, thinner than "
            f"the {SMALLEST_SIDE_PX} pixels Phi-4-multimodal takes; crop or pad it."
        )
    return size


def check_image_processor(image_processor: Any, _config: Any) -> None:
    """Raises MidsightError where the largest number of crops is no number of crops."""
    largest = image_processor.dynamic_hd
    if type(largest) is not int or largest < 1:
        raise MidsightError(
            f"preprocessor_config.json says {largest!r} for dynamic_hd, the largest number of crops; download it again."
        )


def image_inputs(image_processor: Any, image: Image.Image, pixels: Pixels) -> ImageInputs:
    """Runs the folder's own image processor on one RGB image.

    With `pixels="pil"` PIL's bilinear filter scales the image first, as the published processor
    does; the image then has the size that transformers would scale it to, and is left alone.
    """
    size = resized_px(*image.size, image_processor.size["height"], image_processor.dynamic_hd)
    if pixels == "pil":
        image = image.resize(size, Image.Resampling.BILINEAR)
    processed = image_processor(image, return_tensors="pt")
    height_px, width_px = processed["image_sizes"][0].tolist()
    crop_px = image_processor.size["height"]
    tokens = int(processed["num_img_tokens"][0])
    return ImageInputs(
        pixel_values=processed["image_pixel_values"][0],
        patch_mask=processed["image_attention_mask"][0].bool(),
        grid=(height_px // crop_px, width_px // crop_px),
        tokens=tokens,
        attended=tokens,
    )


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> list[Tensor]:
    """Features of each image, [crops, patches, vision width]; 0 where a patch is nobody's.

    Of a sub-crop only the lines and columns of patches are run from which the decoder gets something; crops that are
    filled alike go through together, those that are filled whole without a mask.
    """
    pixel_values = torch.cat([image.pixel_values for image in images])
    patch_mask = torch.cat([image.patch_mask for image in images])
    needed = torch.cat([needed_patches(image) for image in images])
    sizes = [
        (int(rows), int(columns)) for rows, columns in zip(needed.any(2).sum(1), needed.any(1).sum(1), strict=True)
    ]
    calls = [
        crops
        for size in sorted(set(sizes))
        for crops in torch.tensor([i for i, other in enumerate(sizes) if other == size]).split(CROPS_PER_CALL)
    ]
    run = [encode_crops(model, pixel_values[crops], patch_mask[crops], sizes[crops[0]]) for crops in calls]
    features = torch.cat(run)[torch.cat(calls).argsort()]
    return list(features.split([len(image.pixel_values) for image in images]))


def needed_patches(image: ImageInputs) -> Tensor:
    """The patches that are pooled into what the decoder gets, bool [crops, rows, columns], a rectangle in each crop.

    Of the global crop, the first, it gets all; of a sub-crop the squares of 2 x 2 whose first patch is the image's.
    """
    first_of_square = image.patch_mask[:, 0::2, 0::2]
    needed = first_of_square.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    needed[0] = True
    return needed


def encode_crops(
    model: nn.Module, pixel_values: Tensor, patch_mask: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Hidden state `feature_layer` of the tower for pixel_values [crops, 3, h, w], patch_mask [crops, rows, columns].

    Later layers and the pooling head are not run. `size`: rows and columns of patches that are, from the first on;
    the others, which have to be masked, come back as 0.
    """
    tower: Any = submodule(model, VISION_TOWER)
    weight = tower.embeddings.patch_embedding.weight
    pixel_values, patch_mask = pixel_values.to(weight.device, weight.dtype), patch_mask.to(weight.device)
    embedded = tower.embeddings(pixel_values=pixel_values, patch_attention_mask=patch_mask)
    rows, columns = size or patch_mask.shape[1:]
    run = torch.zeros(patch_mask.shape[1:], dtype=torch.bool, device=weight.device)
    run[:rows, :columns] = True
    hidden_states = embedded[:, run.flatten()]
    attention_mask = create_bidirectional_mask(
        config=tower.config,
        inputs_embeds=hidden_states,
        attention_mask=patch_mask[:, :rows, :columns].flatten(1),
    )
    n_layers = len(tower.encoder.layers)
    # hidden_states[0] enters the first layer, so -1 is the output of the last and -2 that of the one before
    layers_to_run = range(n_layers + 1)[tower.config.feature_layer]
    for layer in tower.encoder.layers[:layers_to_run]:
        hidden_states = layer(hidden_states, attention_mask)
    features = torch.zeros_like(embedded)
    features[:, run.flatten()] = hidden_states
    return features


def useful_patches(image: ImageInputs) -> Tensor:
    """The patches that the processor's attention mask keeps, bool [crops, patches]."""
    return image.patch_mask.flatten(1)


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """Pools 2 x 2 patches, joins the sub-crops, adds line separators, and projects to the decoder's width.

    The order is the sub-crops line by line, one separator, the global crop line by line
    (`hd_transform_order: sub_glb`).
    """
    embed: Any = submodule(model, IMAGE_EMBED)
    crops, patches, width = features.shape
    side = math.isqrt(patches)
    squares = features.view(crops, side, side, width).permute(0, 3, 1, 2)
    if getattr(embed, "img_processor_padding", None) is not None:
        squares = embed.img_processor_padding(squares)
    pooled = embed.image_token_compression(squares).permute(0, 2, 3, 1)

    rows, columns = image.grid
    side = pooled.shape[1]
    joined = pooled[1:].view(rows, columns, side, side, width).transpose(1, 2)
    joined = joined.reshape(rows * side, columns * side, width)
    kept = image.patch_mask[1:, 0::2, 0::2].view(rows, columns, side, side).transpose(1, 2)
    kept = kept.reshape(rows * side, columns * side)
    useful = joined[: int(kept[:, 0].sum()), : int(kept[0, :].sum())]

    def lines(block: Tensor) -> Tensor:
        separator = embed.sub_img_feature_extensor[0].expand(len(block), 1, width)
        return torch.cat([block, separator], dim=1).flatten(0, 1)

    sequence = torch.cat([lines(useful), embed.global_img_feature_extensor[0], lines(pooled[0])])
    return embed.img_projection_down(nn.functional.gelu(embed.img_projection_up(sequence)))


def forward_inputs(_config: Any, _token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The image inputs of Phi4MultimodalForCausalLM.forward, padded to the image with the most crops."""
    most = max(len(image.pixel_values) for image in images)

    def pad(crops: Tensor, value: float) -> Tensor:
        return torch.cat([crops, crops.new_full((most - len(crops), *crops.shape[1:]), value)])

    crop_px = images[0].pixel_values.shape[-1]
    return {
        "image_pixel_values": torch.stack([pad(image.pixel_values, 0.0) for image in images]),
        "image_attention_mask": torch.stack([pad(image.patch_mask.float(), 1.0) for image in images]),
        "image_sizes": torch.tensor(
            [[rows * crop_px, columns * crop_px] for rows, columns in (i.grid for i in images)]
        ),
    }


def tower_feature(output: Any, images: Sequence[ImageInputs]) -> list[Tensor]:
    """Hidden state -2 of each image's real crops; transformers pads all images to the most crops."""
    by_image = output.hidden_states[-2].unflatten(0, (len(images), -1))
    return [crops[: len(image.pixel_values)] for crops, image in zip(by_image, images, strict=True)]


def make_tower_bidirectional(model: nn.Module) -> tuple[str, ...]:
    """Undoes transformers' `is_causal = True` on the vision tower's attention.

    With it SDPA attends causally for crops without a masked patch; the published model
    (vision_siglip_navit.py) never does.
    """
    tower: Any = submodule(model, VISION_TOWER)
    causal = [layer.self_attn for layer in tower.encoder.layers if layer.self_attn.is_causal]
    for attention in causal:
        attention.is_causal = False
    if not causal:
        return ()
    return (f"{VISION_TOWER}: attention made bidirectional in {len(causal)} layers (transformers marks it causal)",)


def longrope_border(config: Any) -> int | None:
    """Longest prompt with short factors: `original_max_position_embeddings`, 4096 as published."""
    if config.rope_parameters.get("rope_type") != "longrope":
        return None
    return int(config.rope_parameters["original_max_position_embeddings"])


ADAPTER = Adapter(
    family="Phi-4-multimodal",
    architecture="Phi4MultimodalForCausalLM",
    decoder="model",
    layers="model.layers",
    final_norm="model.norm",
    token_embedding="model.embed_tokens",  # noqa: S106  (a module path)
    lm_head="lm_head",
    vision_tower=VISION_TOWER,
    vision_encoder=lambda config: (
        f"SigLIP, {config.vision_config.num_hidden_layers} layers, "
        f"crops of {config.vision_config.crop_size} px in patches of {config.vision_config.patch_size}"
    ),
    vision_access="img_processor hidden_states[-2], the patches that image_attention_mask keeps",
    image_token=IMAGE_TOKEN,
    image_token_id=lambda config: config.vision_config.image_token_id,
    placeholder=r"<\|(image|audio)_\d+\|>",
    default_pixels="pil",
    check_image_processor=check_image_processor,
    crop_px=lambda image_processor: image_processor.size["height"],
    processor_columns=lambda config: config.vision_config.crop_size,
    lora_folder="vision-lora",
    unused_modules={"audio": AUDIO_EMBED},
    older_names={},
    mends=make_tower_bidirectional,
    longrope_border=longrope_border,
    vision_width=lambda config: config.vision_config.hidden_size,
    takes_system=True,
    render_prompt=render_prompt,
    image_inputs=lambda image_processor, image, pixels, _config: image_inputs(image_processor, image, pixels),
    encode=encode,
    useful_patches=useful_patches,
    image_embeddings=image_embeddings,
    positions=count_up,
    decoder_inputs=place_in_sequence,
    shares_image_prefix=True,
    forward_inputs=forward_inputs,
    tower_feature=tower_feature,
)

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

from midsight.errors import ModelFileError, SampleError, counted
from midsight.families.family import Decoder, Family, Modules, Reference, StoredTensors, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.lora_folders import LORA_FOLDERS
from midsight.families.placement import device_of
from midsight.families.resizing import Pixels
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "<|endoftext10|>"  # noqa: S105  (a token of the vocabulary, no password)
IMAGE_EMBED = "model.embed_tokens_extend.image_embed"
VISION_TOWER = f"{IMAGE_EMBED}.img_processor"
AUDIO_EMBED = "model.embed_tokens_extend.audio_embed"
SMALLEST_SIDE_PX = 10
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' -}}
    {%- for part in message['content'] -%}
        {{- '<|endoftext10|>' if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
    {{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""
"""Renders what the published template renders, for a folder without one."""
CROPS_PER_CALL = 8
"""Crops that go through the encoder together, which bounds its memory; more of them take longer on a CPU."""


def crop_grid(width_px: int, height_px: int, crop_px: int, max_crops: int) -> tuple[int, int]:
    """Rows and columns of sub-crops that cover an image.

    They cover it at its own size if `max_crops` are enough. Otherwise the result is the grid with the closest aspect
    ratio. If several grids are equally close, it is the largest one that the image fills by more than half, or the
    smallest if there is none.
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
    """Width and height of the image, scaled to touch the right or lower edge of its crop grid.

    Raises SampleError if a side would be under 10 pixels.
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


def validate_processor(processor: Any, config: Any) -> None:
    """Raises ModelFileError if the number or the size of crops is not one that the encoder takes."""
    largest, side = processor.image_processor.dynamic_hd, processor.image_processor.size["height"]
    if type(largest) is not int or largest < 1:
        raise ModelFileError(
            f"preprocessor_config.json says {largest!r} for dynamic_hd, which is the largest number of crops"
        )
    if side != config.vision_config.crop_size:
        raise ModelFileError(
            f"preprocessor_config.json makes crops of {side} pixels, and config.json has "
            f"{config.vision_config.crop_size}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, _config: Any) -> ImageInputs:
    """Runs the folder's own image processor on one RGB image.

    With `pixels="pil"` PIL's bilinear filter scales the image first, as the published processor does; the image then
    has the size that transformers would scale it to, so transformers does not scale it again.
    """
    image_processor = processor.image_processor
    crop_px = image_processor.size["height"]
    original_size = image.size
    size = resized_px(*original_size, crop_px, image_processor.dynamic_hd)
    if pixels == "pil":
        image = image.resize(size, Image.Resampling.BILINEAR)
    processed = image_processor(image, return_tensors="pt")
    height_px, width_px = processed["image_sizes"][0].tolist()
    tokens = int(processed["num_img_tokens"][0])
    return ImageInputs(
        pixel_values=processed["image_pixel_values"][0],
        patch_mask=processed["image_attention_mask"][0].bool(),
        original_size=original_size,
        grid=(height_px // crop_px, width_px // crop_px),
        tokens=tokens,
        attended=tokens,
    )


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> list[Tensor]:
    """Features of each image, [crops, patches, vision width]; 0 for patches that are padding.

    Only rows and columns of patches that reach the decoder are run. Crops with the same filled size go through
    together; a call of full crops has no mask.
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
    """The patches that are pooled into the decoder's input, bool [crops, rows, columns], a rectangle in each crop.

    All patches of the global crop, which comes first; of a sub-crop, the 2 x 2 squares whose first patch is not
    padding.
    """
    first_of_square = image.patch_mask[:, 0::2, 0::2]
    needed = first_of_square.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    needed[0] = True
    return needed


def encode_crops(
    model: nn.Module, pixel_values: Tensor, patch_mask: Tensor, size: tuple[int, int] | None = None
) -> Tensor:
    """Hidden state `feature_layer` of the tower for pixel_values [crops, 3, h, w], patch_mask [crops, rows, columns].

    Later layers and the pooling head are not run. `size` is how many rows and columns of patches are run, from the
    first on; the others must be masked, and their features are 0.
    """
    tower: Any = model.get_submodule(VISION_TOWER)
    patch_embedding = tower.embeddings.patch_embedding
    device = device_of(patch_embedding)
    pixel_values, patch_mask = pixel_values.to(device, patch_embedding.weight.dtype), patch_mask.to(device)
    embedded = tower.embeddings(pixel_values=pixel_values, patch_attention_mask=patch_mask)
    rows, columns = size or patch_mask.shape[1:]
    run = torch.zeros(patch_mask.shape[1:], dtype=torch.bool, device=device)
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
    embed: Any = model.get_submodule(IMAGE_EMBED)
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
    """The image inputs of Phi4MultimodalForCausalLM.forward, padded to the largest number of crops."""
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
    """Hidden state -2 of each image's real crops; transformers pads every image to the largest number of crops."""
    by_image = output.hidden_states[-2].unflatten(0, (len(images), -1))
    return [crops[: len(image.pixel_values)] for crops, image in zip(by_image, images, strict=True)]


def make_tower_bidirectional(model: nn.Module) -> tuple[str, ...]:
    """Sets `is_causal = False` on the vision tower's attention, which transformers marks causal.

    With that mark SDPA attends causally to crops without a masked patch. The published model
    (vision_siglip_navit.py) never does.
    """
    tower: Any = model.get_submodule(VISION_TOWER)
    causal = [layer.self_attn for layer in tower.encoder.layers if layer.self_attn.is_causal]
    for attention in causal:
        attention.is_causal = False
    if not causal:
        return ()
    layers = counted(len(causal), "layer")
    return (f"{VISION_TOWER}: attention made bidirectional in {layers} (transformers marks it causal)",)


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    layers = counted(vision.num_hidden_layers, "layer")
    return f"SigLIP, {layers}, crops of {vision.crop_size} px in patches of {vision.patch_size}"


def longrope_threshold(config: Any) -> int | None:
    """Longest prompt with short factors: `original_max_position_embeddings`, 4096 as published."""
    if config.rope_parameters.get("rope_type") != "longrope":
        return None
    return int(config.rope_parameters["original_max_position_embeddings"])


FAMILY = Family(
    name="Phi-4-multimodal",
    architecture="Phi4MultimodalForCausalLM",
    modules=Modules(
        decoder="model",
        layers="model.layers",
        final_norm="model.norm",
        token_embedding="model.embed_tokens",  # noqa: S106  (a module path)
        vision_tower=VISION_TOWER,
    ),
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        image_token_id=lambda config: config.vision_config.image_token_id,
        published=f"<|user|>{IMAGE_TOKEN}{{question}}<|end|><|assistant|>",
        fallback_template=CHAT_TEMPLATE,
        placeholder=r"<\|((image|audio)_\d+|endofprompt|/?tool(_call)?|tool_response|tag)\|>",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="img_processor hidden_states[-2], the patches that image_attention_mask keeps",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=useful_patches,
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=lambda config: config.vision_config.crop_size,
    ),
    decoder=Decoder(longrope_threshold=longrope_threshold),
    stored=StoredTensors(
        unused_modules={"audio": AUDIO_EMBED},
        lora_folder=LORA_FOLDERS["Phi4MultimodalForCausalLM"],
        lora_parts={"vision LoRA": r"\.lora_[AB]\.(vision\.)?weight$", "speech LoRA": r"\.lora_[AB]\.speech\.weight$"},
        fixes=make_tower_bidirectional,
    ),
    reference=Reference(tower_feature=tower_feature, forward_inputs=forward_inputs),
)

"""Qwen3-VL: like Qwen2.5-VL, and three earlier blocks of the encoder are added after the decoder's first layers.

Source of the prompt: the chat template of Qwen/Qwen3-VL-8B-Instruct; of the modules: transformers'
modeling_qwen3_vl.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from midsight.families import qwen2_5_vl
from midsight.families.inputs import DecoderInputs, EncodedImage, ImageInputs, insert_image_embeddings
from midsight.families.placement import device_of
from midsight.families.qwen2_5_vl import IMAGE_MARKUP, PATCHES_PER_CALL, VISION_TOWER, patches_of
from midsight.families.tiles import groups_of, split_by_image
from midsight.prompts.token_layout import TokenLayout


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The last block's output for each image, and beside it those of the earlier blocks that the decoder takes.

    [patches, (1 + earlier blocks) x vision width].
    """
    tower: Any = model.get_submodule(VISION_TOWER)
    device = device_of(tower.patch_embed)
    for group in groups_of(images, PATCHES_PER_CALL):
        patches, grids = patches_of(group)
        output = tower(patches.to(device), grid_thw=grids.to(device), output_hidden_states=True)
        earlier = [output.hidden_states[block + 1] for block in tower.deepstack_visual_indexes]
        yield from split_by_image(torch.cat([output.last_hidden_state, *earlier], dim=1), group)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Patches merged two by two, of every block by its own merger: [tokens, (1 + earlier blocks) x hidden size]."""
    tower: Any = model.get_submodule(VISION_TOWER)
    last, *earlier = (block.contiguous() for block in features.split(tower.config.hidden_size, dim=1))
    mergers = zip(tower.deepstack_merger_list, earlier, strict=True)
    return torch.cat([tower.merger(last), *(merger(block) for merger, block in mergers)], dim=1)


def encoded_width(config: Any) -> int:
    """Width of the last block and of the earlier ones that the decoder takes."""
    return config.vision_config.hidden_size * (1 + len(config.vision_config.deepstack_visual_indexes))


def decoder_inputs(
    model: nn.Module, token_ids: Tensor, layouts: Sequence[TokenLayout], images: Sequence[Sequence[EncodedImage]]
) -> DecoderInputs:
    """Token embeddings with those of the images, what is added to image tokens after the first layers, and where."""
    hf_model: Any = model
    hidden_size = hf_model.config.get_text_config().hidden_size
    encoded = torch.cat([image.embeddings for row in images for image in row])
    _, *added = encoded.split(hidden_size, dim=1)
    first = [[replace(image, embeddings=image.embeddings[:, :hidden_size]) for image in row] for row in images]
    is_image = torch.zeros_like(token_ids, dtype=torch.bool)
    for row, layout in enumerate(layouts):
        is_image[row, torch.from_numpy(layout.image_indices()).to(token_ids.device)] = True
    inputs = insert_image_embeddings(model, token_ids, layouts, first)
    return DecoderInputs(
        {**inputs.prefill, "visual_pos_masks": is_image, "deepstack_visual_embeds": added}, inputs.later
    )


FAMILY = replace(
    qwen2_5_vl.FAMILY,
    name="Qwen3-VL",
    architecture="Qwen3VLForConditionalGeneration",
    prompt=replace(
        qwen2_5_vl.FAMILY.prompt,
        published=f"<|im_start|>user\n{IMAGE_MARKUP}{{question}}<|im_end|>\n<|im_start|>assistant\n",
    ),
    vision=replace(
        qwen2_5_vl.FAMILY.vision,
        encode=encode,
        image_embeddings=image_embeddings,
        encoded_width=encoded_width,
    ),
    decoder=replace(qwen2_5_vl.FAMILY.decoder, inputs=decoder_inputs),
)

"""GLM-4.1V: like Qwen2-VL, and the encoder's patches are normed, and joined two by two by a convolution.

Source of the prompt: the chat template of zai-org/GLM-4.1V-9B-Thinking; of the modules: transformers'
modeling_glm4v.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from midsight.families import qwen2_5_vl
from midsight.families.family import Reference, StoredTensors
from midsight.families.inputs import ImageInputs
from midsight.families.placement import device_of
from midsight.families.qwen2_5_vl import PATCHES_PER_CALL, VISION_TOWER, packed_inputs, patches_of
from midsight.families.resizing import Pixels, with_own_resizing
from midsight.families.tiles import groups_of, split_by_image
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "<|image|>"  # noqa: S105  (a token of the vocabulary, no password)
IMAGE_MARKUP = f"<|begin_of_image|>{IMAGE_TOKEN}<|end_of_image|>"
LAST_NORM = f"{VISION_TOWER}.post_layernorm"


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, _config: Any) -> ImageInputs:
    """As in Qwen2.5-VL, with the image processor that the folder names."""
    return packed_inputs(with_own_resizing(processor.image_processor, pixels), image)


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """Output of the encoder's last norm for each image, [patches, vision width]."""
    tower: Any = model.get_submodule(VISION_TOWER)
    device = device_of(tower.patch_embed)
    normed: list[Tensor] = []

    def keep(_module: object, _args: object, output: Tensor) -> None:
        normed.append(output)

    hook = model.get_submodule(LAST_NORM).register_forward_hook(keep)
    try:
        for group in groups_of(images, PATCHES_PER_CALL):
            patches, grids = patches_of(group)
            tower(patches.to(device), grid_thw=grids.to(device))
            yield from split_by_image(normed.pop(), group)
    finally:
        hook.remove()


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Patches joined two by two, and projected."""
    tower: Any = model.get_submodule(VISION_TOWER)
    side = tower.spatial_merge_size
    squares = features.reshape(-1, side, side, features.shape[-1]).permute(0, 3, 1, 2)
    return tower.merger(tower.downsample(squares).flatten(1))


FAMILY = replace(
    qwen2_5_vl.FAMILY,
    name="GLM-4.1V",
    architecture="Glm4vForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        image_text=IMAGE_MARKUP,
        placeholder=r"</?(think|answer)>|<\|(begin|end)_of_(image|video)\|>|<\|(video|observation|endoftext)\|>",
        published=f"[gMASK]<sop><|user|>\n{IMAGE_MARKUP}{{question}}<|assistant|>\n",
    ),
    vision=replace(
        qwen2_5_vl.FAMILY.vision,
        feature_source="visual post_layernorm, before patches are joined",
        image_inputs=image_inputs,
        encode=encode,
        image_embeddings=image_embeddings,
    ),
    stored=StoredTensors(),
    reference=Reference(tower_feature=split_by_image, forward_inputs=qwen2_5_vl.forward_inputs, module=LAST_NORM),
)

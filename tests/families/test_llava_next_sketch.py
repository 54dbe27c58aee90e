"""LLaVA-NeXT as a sketch: unpadding and a processor that counts tokens need no field that Family does not have."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

import midsight
from midsight.families.catalogue import FAMILIES
from midsight.families.family import Family, Pixels, Reference, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import with_resizing
from midsight.prompts.declaration import FamilyPrompt
from midsight.testing import check_family
from midsight.testing.random_weights import draw_weights, make_tokenizer, save_weights
from support.parity import samples_of
from support.pictures import CASES

TOKENS = {31998: "<s>", 31999: "</s>", 32000: "<image>", 32001: "<pad>"}
CHAT_TEMPLATE = "{{ bos_token }}[INST] {% for part in messages[0]['content'] %}" \
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %} [/INST]"  # fmt: skip
SIDE, TILE_PX = 4, 56


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The whole image, then tiles; padding of the tiled image is unpadded after the projector."""
    image_processor = with_resizing(
        processor.image_processor, pixels, pil=LlavaNextImageProcessorPil, tensors=LlavaNextImageProcessor
    )
    tiles = image_processor(image, return_tensors="pt")["pixel_values"][0]
    rows, columns = grid_of(image.size, config)
    kept = torch.arange(rows * SIDE * columns * SIDE).view(1, rows * SIDE, columns * SIDE)
    kept = unpad_image(kept, image.size[::-1]).flatten()
    whole = torch.zeros(rows * SIDE * columns * SIDE, dtype=torch.bool)
    whole[kept] = True
    by_tile = whole.view(rows, SIDE, columns, SIDE).transpose(1, 2).reshape(rows * columns, SIDE, SIDE)
    (tokens,) = processor._get_num_multimodal_tokens([image.size[::-1]])["num_image_tokens"]
    return ImageInputs(
        pixel_values=tiles[: 1 + rows * columns],
        patch_mask=torch.cat([torch.ones((1, SIDE, SIDE), dtype=torch.bool), by_tile]),
        original_size=image.size,
        grid=(rows, columns),
        tokens=tokens,
        attended=tokens,
    )


def grid_of(size: tuple[int, int], config: Any) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return get_anyres_image_grid_shape(size[::-1], config.image_grid_pinpoints, config.vision_config.image_size)


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """Hidden state -2 of every tile, [tiles, CLS and patches, vision width]."""
    tower: Any = model.get_submodule("model.vision_tower")
    for image in images:
        yield tower(image.pixel_values, output_hidden_states=True).hidden_states[-2]


def useful_patches(image: ImageInputs) -> Tensor:
    """Patches that stay after unpadding, without CLS."""
    patches = image.patch_mask.flatten(1)
    return torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """The whole image, then the tiles joined, unpadded, and with a new-line embedding after each line."""
    hf_model: Any = model
    projected = hf_model.model.multi_modal_projector(features[:, 1:])
    packed, _ = hf_model.model.pack_image_features(
        [projected], torch.tensor([image.original_size[::-1]]), "default", image_newline=hf_model.model.image_newline
    )
    return packed[0]


def forward_inputs(_config: Any, _token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The inputs of the forward, padded to the largest number of tiles."""
    tiles = [image.pixel_values for image in images]
    return {
        "pixel_values": nn.utils.rnn.pad_sequence(tiles, batch_first=True),
        "image_sizes": torch.tensor([image.original_size[::-1] for image in images]),
    }


def tower_feature(output: Any, images: Sequence[ImageInputs]) -> list[Tensor]:
    """Hidden state -2, cut into images."""
    return list(output.hidden_states[-2].split([len(image.pixel_values) for image in images]))


FAMILY = Family(
    name="LLaVA-NeXT",
    architecture="LlavaNextForConditionalGeneration",
    prompt=FamilyPrompt(image_token="<image>"),  # noqa: S106  (a token of the vocabulary)
    vision=Vision(
        describe=lambda config: f"CLIP, {config.vision_config.num_hidden_layers} layers",
        feature_source="vision_tower hidden_states[-2] without CLS, unpadded",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=useful_patches,
        image_embeddings=image_embeddings,
    ),
    reference=Reference(tower_feature=tower_feature, forward_inputs=forward_inputs),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A random LLaVA-NeXT of four layers, tiles of 4 x 4 patches, and its family in the catalogue."""
    module = types.ModuleType("midsight.families.llava_next")
    monkeypatch.setattr(module, "FAMILY", FAMILY, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FAMILIES, FAMILY.architecture, module.__name__)
    vision: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    text: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    pinpoints = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=TILE_PX, patch_size=14),
        text_config=LlamaConfig(
            **text, vocab_size=32002, num_key_value_heads=2, bos_token_id=31998, eos_token_id=31999
        ),
        image_token_index=32000,
        image_grid_pinpoints=pinpoints,
        architectures=[FAMILY.architecture],
        dtype="bfloat16",
    )
    tokenizer = make_tokenizer(TOKENS, bos_token="<s>", eos_token="</s>", pad_token="<pad>")  # noqa: S106  (tokens)
    words = dict.fromkeys(tokenizer.get_vocab().values(), 1.0)
    rows = {"model.language_model.embed_tokens.weight": words, "lm_head.weight": {**words, 32000: 0.01, 32001: 0.01}}
    weights = draw_weights(LlavaNextForConditionalGeneration, config, rows, Generator().manual_seed(0), ())
    save_weights(weights, tmp_path / "model.safetensors")
    config.save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=31999, pad_token_id=32001).save_pretrained(tmp_path)
    image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": TILE_PX}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=pinpoints
    )
    LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(tmp_path)
    return tmp_path


def test_the_sketch_is_proved(folder):
    model = midsight.load(folder, device="cpu")
    checks = check_family(model, samples_of([CASES[0], CASES[3], CASES[4]]))
    assert [check for check in checks if not check.passed] == []
    assert "prompts whose token ids differ from the processor's own" in {check.name for check in checks}

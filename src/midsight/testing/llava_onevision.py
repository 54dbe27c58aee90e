"""A small, complete LLaVA-OneVision checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import VISION_SIZE, decoder_fields, siglip_fields

ENDOFTEXT, IM_END, IMAGE, VIDEO = 151643, 151645, 151646, 151647
SPECIAL_TOKENS = {
    ENDOFTEXT: "<|endoftext|>",
    151644: "<|im_start|>",
    IM_END: "<|im_end|>",
    IMAGE: "<image>",
    VIDEO: "<video>",
}
"""The published ids and tokens."""

VOCABULARY_SIZE = 151648
TILE_PX, PATCH_PX = 56, 14
MOST_TILES = 4
"""Largest number of rows and of columns in a grid; published are six."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{# Render all video then #}{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The published template of llava-hf/llava-onevision-qwen2-7b-ov-hf."""

HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.01), IM_END: 2.0}
"""Scales of the head's rows of control tokens: `<|im_end|>` wins now and then, so that answers have many lengths, and
no answer contains another one."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


def write_llava_onevision(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `LlavaOnevisionForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of llava-hf/llava-onevision-qwen2-7b-ov-hf, except that tiles have 56
    pixels, and grids at most four rows and columns. The vocabulary is small, and the weights (20 MB, bfloat16) are
    random. Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        eos_token=SPECIAL_TOKENS[IM_END],
        pad_token=SPECIAL_TOKENS[ENDOFTEXT],
        model_max_length=32768,
    )
    size = {"height": TILE_PX, "width": TILE_PX}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=grids(), image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
        ),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(TILE_PX // PATCH_PX) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio="anyres_max_9",
    )
    return write_checkpoint(
        folder,
        LlavaOnevisionForConditionalGeneration,
        make_config(layers),
        processor,
        GenerationConfig(bos_token_id=ENDOFTEXT, eos_token_id=IM_END),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
    )


def grids() -> list[list[int]]:
    """Height and width of every grid, in pixels."""
    sides = [TILE_PX * tiles for tiles in range(1, MOST_TILES + 1)]
    return [[height, width] for height in sides for width in sides]


def make_config(layers: int) -> LlavaOnevisionConfig:
    """The published configuration with small widths, small tiles and few layers."""
    return LlavaOnevisionConfig(
        architectures=["LlavaOnevisionForConditionalGeneration"],
        dtype="bfloat16",
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=grids(),
        vision_aspect_ratio="anyres_max_9",
        text_config=qwen2_fields(layers, VOCABULARY_SIZE, max_positions=32768),
        vision_config=siglip_fields(VISION_SIZE, TILE_PX, PATCH_PX),
    )


def qwen2_fields(layers: int, vocabulary_size: int, *, max_positions: int) -> dict[str, Any]:
    """The decoder's configuration with small widths and few layers."""
    return decoder_fields(
        "qwen2",
        layers,
        vocabulary_size,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        bos_token_id=ENDOFTEXT,
        eos_token_id=IM_END,
    )

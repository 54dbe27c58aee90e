"""A small, complete DeepSeek-VL checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from midsight.testing.llava import GAINS, text_fields
from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import siglip_fields

BOS, EOS, IMAGE = 100000, 100001, 100015
SPECIAL_TOKENS = {BOS: "<｜begin▁of▁sentence｜>", EOS: "<｜end▁of▁sentence｜>", IMAGE: "<image_placeholder>"}
"""The published ids and tokens."""

VISION_SIZE = 16
SQUARE_PX, PATCH_PX = 64, 16

CHAT_TEMPLATE = (
    "{% set seps = ['\n\n', '<｜end▁of▁sentence｜>'] %}You are a helpful language and vision assistant. You are "
    "able to understand the visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language.\n\n{% for message in messages %}{% if message['role']|lower == 'user' %}User: "
    "{% elif message['role']|lower == 'assistant' %}Assistant: {% else %}{{ message['role'].capitalize() }}: "
    "{% endif %}{% for content in message['content'] %}{% if content['type'] == 'image' %}<image_placeholder>"
    "{% elif content['type'] == 'text' %}{% set text = content['text'] %}"
    "{% if loop.first %}{% set text = text.lstrip() %}{% endif %}{% if loop.last %}{% set text = text.rstrip() %}"
    "{% endif %}{% if not loop.first and message['content'][loop.index0-1]['type'] == 'text' %}{{ ' ' + text }}"
    "{% else %}{{ text }}{% endif %}{% endif %}{% endfor %}{% if not loop.last or add_generation_prompt %}"
    "{% if message['role']|lower == 'user' %}{{ seps[0] }}{% else %}{{ seps[1] }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The template of transformers' conversion script, without its rule for an empty last answer."""

HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.01), EOS: 2.5}
"""Scales of the head's rows of control tokens: `EOS` wins now and then, so that answers have many lengths, and no
answer contains another one."""


def write_deepseek_vl(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `DeepseekVLForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of deepseek-community/deepseek-vl-1.3b-chat, except that squares have
    64 pixels. The vocabulary is small, and the weights (13 MB, bfloat16) are random. Embedding rows without a token are
    zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    processor = DeepseekVLProcessor(
        DeepseekVLImageProcessor(
            size={"height": SQUARE_PX, "width": SQUARE_PX}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
        ),
        make_own_tokenizer(),
        chat_template=CHAT_TEMPLATE,
        num_image_tokens=(SQUARE_PX // PATCH_PX) ** 2,
    )
    return write_checkpoint(
        folder,
        DeepseekVLForConditionalGeneration,
        make_config(layers),
        processor,
        GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
    )


def make_config(layers: int) -> DeepseekVLConfig:
    """The published configuration with small widths, small squares and few layers; the head is not the embedding."""
    return DeepseekVLConfig(
        architectures=["DeepseekVLForConditionalGeneration"],
        dtype="bfloat16",
        image_token_id=IMAGE,
        tie_word_embeddings=False,
        text_config=decoder_fields(layers),
        vision_config=vision_fields(),
    )


def make_own_tokenizer() -> PreTrainedTokenizerFast:
    """The shipped tokenizer with the published special tokens."""
    return make_tokenizer(
        SPECIAL_TOKENS,
        first_token=SPECIAL_TOKENS[BOS],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[EOS],
        extra_special_tokens={"image_token": SPECIAL_TOKENS[IMAGE]},
        model_max_length=16384,
    )


def decoder_fields(layers: int) -> dict[str, Any]:
    """The decoder's configuration with small widths and few layers."""
    return {
        **text_fields(layers),
        "model_type": "llama",
        "vocab_size": 102400,
        "num_key_value_heads": 4,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-6,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def vision_fields() -> dict[str, Any]:
    """SigLIP's configuration with small widths and few layers."""
    return {**siglip_fields(VISION_SIZE, SQUARE_PX, PATCH_PX), "hidden_act": "gelu"}

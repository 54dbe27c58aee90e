"""A small, complete Mistral 3 checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
)

from midsight.families.mistral3 import SYSTEM
from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import VISION_SIZE, decoder_fields

BOS, EOS, IMAGE, PAD = 1, 2, 10, 11
SPECIAL_TOKENS = {
    0: "<unk>",
    BOS: "<s>",
    EOS: "</s>",
    3: "[INST]",
    4: "[/INST]",
    IMAGE: "[IMG]",
    PAD: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
}
"""The published ids and tokens, without those of tools."""

VOCABULARY_SIZE = 131072
LONGEST_PX, PATCH_PX, MERGED = 196, 7, 2

CHAT_TEMPLATE = (
    f"""\
{{%- set system_message = {json.dumps(SYSTEM)}.replace('{{date}}', strftime_now('%Y-%m-%d')) %}}
"""
    + """\
{{- bos_token }}
{%- for message in messages if message['role'] == 'system' %}
    {%- set system_message = message['content'] if message['content'] is string else message['content'][0]['text'] %}
    {{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
{%- else %}
    {{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
{%- endfor %}
{%- for message in messages if message['role'] != 'system' %}
    {%- if message['role'] == 'assistant' %}
        {{- message['content'] + eos_token }}
    {%- elif message['content'] is string %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
    {%- else %}
        {{- '[INST]' }}
        {%- for block in message['content'] %}
            {{- block['text'] if block['type'] == 'text' else '[IMG]' }}
        {%- endfor %}
        {{- '[/INST]' }}
    {%- endif %}
{%- endfor %}
"""
)
"""Renders what the published template does for images and text."""

HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.01), EOS: 2.5}
"""Scales of the head's rows of control tokens: `</s>` wins now and then, so that answers have many lengths, and no
answer contains another one."""


def write_mistral3(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Mistral3ForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of mistralai/Mistral-Small-3.1-24B-Instruct-2503, except that images
    have at most 196 pixels to a side, in patches of 7. The vocabulary is small, and the weights (17 MB, bfloat16) are
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
        first_token=SPECIAL_TOKENS[BOS],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        unk_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[PAD],
        model_max_length=131072,
    )
    image_processor = PixtralImageProcessor(
        size={"longest_edge": LONGEST_PX}, patch_size={"height": PATCH_PX, "width": PATCH_PX}
    )
    return write_checkpoint(
        folder,
        Mistral3ForConditionalGeneration,
        make_config(layers),
        PixtralProcessor(
            image_processor,
            tokenizer,
            patch_size=PATCH_PX,
            spatial_merge_size=MERGED,
            chat_template=CHAT_TEMPLATE,
        ),
        GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD),
        head_scales=HEAD_SCALES,
        gains=(),
        seed=seed,
    )


def make_config(layers: int) -> Mistral3Config:
    """The published configuration with small widths, small images and few layers."""
    return Mistral3Config(
        architectures=["Mistral3ForConditionalGeneration"],
        dtype="bfloat16",
        image_token_index=IMAGE,
        spatial_merge_size=MERGED,
        tie_word_embeddings=False,
        text_config=text_fields(layers, max_position_embeddings=131072),
        vision_config=vision_fields(LONGEST_PX),
    )


def text_fields(layers: int, *, max_position_embeddings: int) -> dict[str, Any]:
    """The decoder's configuration with small widths and few layers."""
    return decoder_fields(
        "mistral",
        layers,
        VOCABULARY_SIZE,
        head_dim=16,
        max_position_embeddings=max_position_embeddings,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000000.0},
        sliding_window=None,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def vision_fields(longest_px: int) -> dict[str, Any]:
    """The encoder's configuration with small widths and few layers, for images of up to this size."""
    return {
        "model_type": "pixtral",
        "hidden_size": 2 * VISION_SIZE,
        "intermediate_size": 4 * VISION_SIZE,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "head_dim": VISION_SIZE,
        "image_size": longest_px,
        "patch_size": PATCH_PX,
    }

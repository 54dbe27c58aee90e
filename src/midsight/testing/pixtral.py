"""A small, complete Pixtral checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
)

from midsight.testing.mistral3 import BOS, EOS, IMAGE, PAD, SPECIAL_TOKENS, text_fields, vision_fields
from midsight.testing.random_weights import make_tokenizer, write_checkpoint

TOKENS = {one: token for one, token in SPECIAL_TOKENS.items() if "SYSTEM_PROMPT" not in token}
"""The published ids and tokens, without those of tools."""

LONGEST_PX, PATCH_PX = 98, 7

CHAT_TEMPLATE = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" }}
        {%- else %}
            {{- "[INST]" }}
        {%- endif %}
        {%- for chunk in message["content"] %}
            {{- "[IMG]" if chunk["type"] == "image" else chunk["text"] }}
        {%- endfor %}
        {{- "[/INST]" }}
    {%- else %}
        {{- message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
"""Renders what the published template does for images and text."""

HEAD_SCALES = {**dict.fromkeys(TOKENS, 0.01), EOS: 2.5}
"""Scales of the head's rows of control tokens: `</s>` wins now and then, so that answers have many lengths, and no
answer contains another one."""


def write_pixtral(folder: str | Path, *, seed: int = 6, layers: int = 6) -> Path:
    """Writes a small model folder that `LlavaForConditionalGeneration` loads with Pixtral's encoder.

    Special tokens, prompt and processor are those of mistral-community/pixtral-12b, except that images have at most 98
    pixels to a side, in patches of 7. The vocabulary is small, and the weights (17 MB, bfloat16) are random. Embedding
    rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights; with 6, answers have many lengths.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    names = {"bos": BOS, "eos": EOS, "unk": 0, "pad": PAD}
    tokenizer = make_tokenizer(
        TOKENS,
        first_token=TOKENS[BOS],
        model_max_length=131072,
        **{f"{name}_token": TOKENS[one] for name, one in names.items()},
    )
    image_processor = PixtralImageProcessor(
        size={"longest_edge": LONGEST_PX}, patch_size={"height": PATCH_PX, "width": PATCH_PX}
    )
    return write_checkpoint(
        folder,
        LlavaForConditionalGeneration,
        make_config(layers),
        PixtralProcessor(image_processor, tokenizer, patch_size=PATCH_PX, chat_template=CHAT_TEMPLATE),
        GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD),
        head_scales=HEAD_SCALES,
        gains=(),
        seed=seed,
    )


def make_config(layers: int) -> LlavaConfig:
    """The published configuration with small widths, small images and few layers."""
    return LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        dtype="bfloat16",
        image_token_index=IMAGE,
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        text_config=text_fields(layers, max_position_embeddings=1024000),
        vision_config=vision_fields(LONGEST_PX),
    )

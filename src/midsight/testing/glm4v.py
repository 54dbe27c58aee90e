"""A small, complete GLM-4.1V checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    GenerationConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
)

from midsight.testing.qwen2_5_vl import CONTROL_ROW_SCALE, HIDDEN_SIZE, STOP_ROW_SCALE, VISION_SIZE
from midsight.testing.random_weights import Gains, make_tokenizer, write_checkpoint

ENDOFTEXT, USER, OBSERVATION, ANSWER_END, IMAGE = 151329, 151336, 151338, 151348, 151343
TOKENS_OF_ALL = {
    ENDOFTEXT: "<|endoftext|>",
    151331: "[gMASK]",
    151333: "<sop>",
    151335: "<|system|>",
    USER: "<|user|>",
    151337: "<|assistant|>",
    OBSERVATION: "<|observation|>",
    151339: "<|begin_of_image|>",
    151340: "<|end_of_image|>",
    151341: "<|begin_of_video|>",
    151342: "<|end_of_video|>",
}
"""The published ids and tokens that GLM-4.1V and GLM-4.5V have in common."""
SPECIAL_TOKENS = {
    **TOKENS_OF_ALL,
    IMAGE: "<|image|>",
    151344: "<|video|>",
    151345: "<think>",
    151346: "</think>",
    151347: "<answer>",
    ANSWER_END: "</answer>",
}
"""The published ids and tokens."""

LARGEST_IMAGE_TOKENS = 256

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- '<|system|>\\n' + message.content }}
    {%- else %}
        {{- '<|' + message.role + '|>\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for part in message.content %}
                {{- '<|begin_of_image|><|image|><|end_of_image|>' if part.type == 'image' else part.text }}
            {%- endfor %}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""
"""Renders what the published template does for images and text, without video."""


def write_glm4v(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Glm4vForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of zai-org/GLM-4.1V-9B-Thinking, except that images have at most 256
    tokens. The vocabulary is small, and the weights (20 MB, bfloat16) are random. Embedding rows without a token are
    zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    text = {
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 2],
        },
    }
    return write_folder(
        folder,
        Glm4vForConditionalGeneration,
        Glm4vConfig,
        text,
        SPECIAL_TOKENS,
        CHAT_TEMPLATE,
        stop_ids=[ENDOFTEXT, USER, OBSERVATION, ANSWER_END],
        gains=(),
        seed=seed,
    )


def write_folder(
    folder: str | Path,
    model: type[nn.Module],
    config: type[Any],
    text: Mapping[str, Any],
    special_tokens: Mapping[int, str],
    chat_template: str,
    *,
    stop_ids: Sequence[int],
    gains: Gains,
    seed: int,
) -> Path:
    """Writes the files of a checkpoint of this class with these fields of its decoder."""
    names = {token: token_id for token_id, token in special_tokens.items()}
    small_config = config(
        architectures=[model.__name__],
        dtype="bfloat16",
        image_token_id=names["<|image|>"],
        video_token_id=names["<|video|>"],
        text_config={
            "vocab_size": 151552,
            "hidden_size": HIDDEN_SIZE,
            "eos_token_id": [*stop_ids],
            "pad_token_id": ENDOFTEXT,
            **text,
        },
        vision_config={
            "hidden_size": VISION_SIZE,
            "intermediate_size": 2 * VISION_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "depth": 3,
            "num_heads": 2,
            "image_size": 112,
        },
    )
    end = special_tokens[ENDOFTEXT]
    tokenizer = make_tokenizer(special_tokens, eos_token=end, pad_token=end, model_max_length=65536)
    size = {"shortest_edge": 112 * 112, "longest_edge": 2 * 28 * 28 * LARGEST_IMAGE_TOKENS}
    image_processor = Glm4vImageProcessor(size=size)
    return write_checkpoint(
        folder,
        model,
        small_config,
        Glm4vProcessor(image_processor, tokenizer, Glm4vVideoProcessor(), chat_template=chat_template),
        GenerationConfig(eos_token_id=[*stop_ids], pad_token_id=ENDOFTEXT),
        head_scales={**dict.fromkeys(special_tokens, CONTROL_ROW_SCALE), USER: STOP_ROW_SCALE},
        gains=gains,
        seed=seed,
    )

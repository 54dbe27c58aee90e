"""A small, complete GLM-4.5V checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

from midsight.testing.glm4v import ENDOFTEXT, OBSERVATION, TOKENS_OF_ALL, USER, write_folder
from midsight.testing.qwen2_5_vl import HIDDEN_SIZE

SPECIAL_TOKENS = {
    **TOKENS_OF_ALL,
    151350: "<think>",
    151351: "</think>",
    151360: "/nothink",
    151361: "<|begin_of_box|>",
    151362: "<|end_of_box|>",
    151363: "<|image|>",
    151364: "<|video|>",
}
"""The published ids and tokens."""

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- set silent = enable_thinking is defined and not enable_thinking %}
{%- macro written(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {{- '<|begin_of_image|><|image|><|end_of_image|>' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- set text = written(message.content) %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>\\n<think></think>\\n' + text }}
    {%- else %}
        {{- '<|' + message.role + '|>\\n' + text }}
        {{- '/nothink' if silent and message.role == 'user' and not text.endswith('/nothink') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
    {{- '<think></think>\\n' if silent }}
{%- endif %}
"""
"""Renders what the published template does for images and text, without tools, video and earlier thoughts."""

ROUTER_BIAS = "mlp.gate.e_score_correction_bias"
ROUTER_BIAS_LEVEL = 2.0
"""What is added to the bias. A bias that is large and nearly even tells whether it is kept in float32: rounded to
bfloat16 it chooses other experts."""
GAINS = ((ROUTER_BIAS, 0.1),)


def write_glm4v_moe(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Glm4vMoeForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of zai-org/GLM-4.5V, except that images have at most 256 tokens. The
    first layer of the decoder is dense; the others have eight experts, two of which compute a token, and a shared one.
    Experts are stored one by one and the router's bias in float32, as published. The vocabulary is small, and the
    weights (20 MB, bfloat16) are random. Embedding rows without a token are zero.

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
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": HIDDEN_SIZE,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 3 * HIDDEN_SIZE // 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 3, 3],
        },
    }
    folder = write_folder(
        folder,
        Glm4vMoeForConditionalGeneration,
        Glm4vMoeConfig,
        text,
        SPECIAL_TOKENS,
        CHAT_TEMPLATE,
        stop_ids=[ENDOFTEXT, USER, OBSERVATION],
        gains=GAINS,
        seed=seed,
    )
    weights = folder / "model.safetensors"
    published = {name: one for merged in load_file(weights).items() for name, one in as_published(*merged)}
    weights.unlink()
    save_file(published, weights, metadata={"format": "pt"})
    return folder


def as_published(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors of one of transformers', which holds all experts of a layer."""
    block, is_experts, part = name.rpartition(".experts.")
    if name.endswith(ROUTER_BIAS):
        yield name, tensor.float() + ROUTER_BIAS_LEVEL
    elif not is_experts:
        yield name, tensor
    else:
        parts = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
        for number, expert in enumerate(tensor):
            for stored, weight in zip(parts, expert.chunk(len(parts)), strict=True):
                yield f"{block}.experts.{number}.{stored}.weight", weight.clone()

"""Small, complete Qwen3.5 checkpoints with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from midsight.testing.qwen2_5_vl import HIDDEN_SIZE, LARGEST_IMAGE_TOKENS, VISION_SIZE
from midsight.testing.random_weights import make_tokenizer, write_checkpoint

ENDOFTEXT, IM_END, IMAGE = 248044, 248046, 248056
SPECIAL_TOKENS = {
    ENDOFTEXT: "<|endoftext|>",
    248045: "<|im_start|>",
    IM_END: "<|im_end|>",
    248053: "<|vision_start|>",
    248054: "<|vision_end|>",
    248055: "<|vision_pad|>",
    IMAGE: "<|image_pad|>",
    248057: "<|video_pad|>",
    248068: "<think>",
    248069: "</think>",
}
"""The published ids and tokens."""

VOCABULARY_SIZE = 248320
INTERVAL = 3
"""Every third layer has keys; published are every fourth."""

CHAT_TEMPLATE = """\
{%- macro render_content(content, is_system_content=false) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for item in content %}
            {%- if item.type == 'image' %}
                {%- if is_system_content %}
                    {{- raise_exception('System message cannot contain images.') }}
                {%- endif %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in item %}
                {{- item.text }}
            {%- else %}
                {{- raise_exception('Unexpected item type in content.') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if not messages %}
    {{- raise_exception('No messages provided.') }}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set content = render_content(messages[0].content, true)|trim %}
    {{- '<|im_start|>system\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = render_content(message.content)|trim %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}
            {{- raise_exception('System message must be at the beginning.') }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""
"""Renders what the published template does for images and text, without tools, video and numbered pictures."""

HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.01), IM_END: 3.0}
"""Scales of the head's rows of control tokens: `<|im_end|>` wins now and then, so that answers have many lengths, and
no answer contains another one."""

NORM_EPS = 1e-2
"""Published is 1e-6. Narrow random layers put out values near zero, whose rounding such a norm makes large."""
NORMS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "language_model.norm")
OFFSETS = (("A_log", -3.0), *((f"{norm}.weight", -1.0) for norm in NORMS))
"""The state fades over some thirty tokens, and not at once; these norms multiply by one plus their weight."""


def write_qwen3_5(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Qwen3_5ForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of Qwen/Qwen3.5-27B, except that images have at most 256 tokens.
    Every third layer and the last have keys, the others a state. The vocabulary is small, and the weights (32 MB,
    bfloat16) are random. Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    config = Qwen3_5Config(**config_fields("Qwen3_5ForConditionalGeneration", layers))
    return write_folder(folder, Qwen3_5ForConditionalGeneration, config, seed)


def write_qwen3_5_moe(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Qwen3_5MoeForConditionalGeneration` loads.

    Like `write_qwen3_5`; every layer of the decoder has eight experts, two of which compute a token, and a shared one.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    fields = config_fields("Qwen3_5MoeForConditionalGeneration", layers)
    del fields["text_config"]["intermediate_size"]
    fields["text_config"] |= {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 3 * HIDDEN_SIZE // 4,
        "shared_expert_intermediate_size": HIDDEN_SIZE,
    }
    return write_folder(folder, Qwen3_5MoeForConditionalGeneration, Qwen3_5MoeConfig(**fields), seed)


def config_fields(architecture: str, layers: int) -> dict[str, Any]:
    """The published configuration with small widths and few layers."""
    with_keys = {*range(INTERVAL - 1, layers, INTERVAL), layers - 1}
    return {
        "architectures": [architecture],
        "dtype": "bfloat16",
        "image_token_id": IMAGE,
        "text_config": {
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "rms_norm_eps": NORM_EPS,
            "layer_types": ["full_attention" if layer in with_keys else "linear_attention" for layer in range(layers)],
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000000.0,
                "partial_rotary_factor": 0.25,
                "mrope_section": [3, 3, 2],
                "mrope_interleaved": True,
            },
            "eos_token_id": ENDOFTEXT,
        },
        "vision_config": {
            "hidden_size": VISION_SIZE,
            "intermediate_size": 2 * VISION_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "depth": 4,
            "num_heads": 2,
            "num_position_embeddings": 64,
        },
    }


def write_folder(folder: str | Path, model: type, config: Any, seed: int) -> Path:
    """Writes the files of a checkpoint with this config."""
    image_processor = Qwen2VLImageProcessor(
        size={"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * LARGEST_IMAGE_TOKENS},
        patch_size=16,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        eos_token=SPECIAL_TOKENS[IM_END],
        pad_token=SPECIAL_TOKENS[ENDOFTEXT],
        model_max_length=262144,
    )
    return write_checkpoint(
        folder,
        model,
        config,
        Qwen3VLProcessor(image_processor, tokenizer, Qwen3VLVideoProcessor(), chat_template=CHAT_TEMPLATE),
        GenerationConfig(bos_token_id=ENDOFTEXT, eos_token_id=[IM_END, ENDOFTEXT], pad_token_id=ENDOFTEXT),
        head_scales=HEAD_SCALES,
        gains=(),
        seed=seed,
        offsets=OFFSETS,
    )

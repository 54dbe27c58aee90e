"""Small, complete Qwen2-VL, Qwen2.5-VL and Qwen3-VL checkpoints with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Generator
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from midsight.checkpoints.quiet import quiet_transformers
from midsight.testing.random_weights import draw_weights, make_tokenizer, save_weights

ENDOFTEXT, IM_END, IMAGE = 151643, 151645, 151655
SPECIAL_TOKENS = {
    ENDOFTEXT: "<|endoftext|>",
    151644: "<|im_start|>",
    IM_END: "<|im_end|>",
    151652: "<|vision_start|>",
    151653: "<|vision_end|>",
    151654: "<|vision_pad|>",
    IMAGE: "<|image_pad|>",
    151656: "<|video_pad|>",
}
"""The published ids and tokens."""

VOCABULARY_SIZE = 152064
HIDDEN_SIZE = 32
VISION_SIZE = 32
LARGEST_IMAGE_TOKENS = 256

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {{- '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""
"""Renders what the published template does for images and text, without video and numbered pictures."""

QWEN3_TEMPLATE = CHAT_TEMPLATE.partition("{%- endif -%}\n")[2]
"""Renders what the published template does for images and text, without tools, video and numbered pictures."""

STOP_ROW_SCALE = 3.0
"""Scale of the head's row of `<|im_end|>`: large enough that it wins now and then, so answers have many lengths."""
CONTROL_ROW_SCALE = 0.01
"""Scale of the head's rows of the other control tokens: so small that no answer contains one."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


def write_qwen2_5_vl(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Qwen2_5_VLForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of Qwen/Qwen2.5-VL-7B-Instruct, except that images have at most 256
    tokens. The vocabulary is small, and the weights (20 MB, bfloat16) are random. Embedding rows without a token are
    zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    vision = {
        "hidden_size": VISION_SIZE,
        "intermediate_size": 2 * VISION_SIZE,
        "out_hidden_size": HIDDEN_SIZE,
        "depth": 4,
        "fullatt_block_indexes": [1, 3],
        "window_size": 112,
    }
    config = Qwen2_5_VLConfig(**config_fields("Qwen2_5_VLForConditionalGeneration", vision, layers))
    return write_folder(
        Path(folder), config, Qwen2_5_VLForConditionalGeneration, qwen2_processor(Qwen2_5_VLProcessor), seed
    )


def write_qwen2_vl(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Qwen2VLForConditionalGeneration` loads.

    Like `write_qwen2_5_vl`, with the special tokens, prompt and processor of Qwen/Qwen2-VL-7B-Instruct.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    vision = {"embed_dim": VISION_SIZE, "hidden_size": HIDDEN_SIZE, "mlp_ratio": 2, "depth": 4}
    config = Qwen2VLConfig(**config_fields("Qwen2VLForConditionalGeneration", vision, layers))
    return write_folder(Path(folder), config, Qwen2VLForConditionalGeneration, qwen2_processor(Qwen2VLProcessor), seed)


def write_qwen3_vl(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Qwen3VLForConditionalGeneration` loads.

    Like `write_qwen2_5_vl`, with the special tokens, prompt and processor of Qwen/Qwen3-VL-8B-Instruct. Two blocks of
    the encoder are added after the decoder's first two layers.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    config = Qwen3VLConfig(**qwen3_fields("Qwen3VLForConditionalGeneration", layers))
    return write_folder(Path(folder), config, Qwen3VLForConditionalGeneration, qwen3_processor(), seed)


def write_qwen3_vl_moe(folder: str | Path, *, seed: int = 1, layers: int = 6) -> Path:
    """Writes a small model folder that `Qwen3VLMoeForConditionalGeneration` loads.

    Like `write_qwen3_vl`; every layer of the decoder has eight experts, two of which compute a token.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights; with 1, answers have many lengths.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    fields = qwen3_fields("Qwen3VLMoeForConditionalGeneration", layers)
    fields["text_config"] |= {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 3 * HIDDEN_SIZE // 4,
        "tie_word_embeddings": False,
    }
    return write_folder(
        Path(folder), Qwen3VLMoeConfig(**fields), Qwen3VLMoeForConditionalGeneration, qwen3_processor(), seed
    )


def qwen3_fields(architecture: str, layers: int) -> dict[str, Any]:
    """The published configuration of Qwen3-VL with small widths and few layers."""
    vision = {
        "hidden_size": VISION_SIZE,
        "intermediate_size": 2 * VISION_SIZE,
        "out_hidden_size": HIDDEN_SIZE,
        "depth": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 2],
        "patch_size": 16,
    }
    fields = config_fields(architecture, vision, layers)
    rope = {"rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    fields["text_config"] |= {"vocab_size": 151936, "head_dim": 16, "rope_parameters": rope}
    return fields


def qwen3_processor() -> Any:
    """The processor of Qwen3-VL."""
    image_processor = Qwen2VLImageProcessor(
        size={"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * LARGEST_IMAGE_TOKENS},
        patch_size=16,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Qwen3VLProcessor(image_processor, qwen_tokenizer(), Qwen3VLVideoProcessor(), chat_template=QWEN3_TEMPLATE)


def config_fields(architecture: str, vision: dict[str, Any], layers: int) -> dict[str, Any]:
    """The published configuration with small widths and few layers."""
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
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": ENDOFTEXT,
            "eos_token_id": IM_END,
        },
        "vision_config": {
            "num_heads": 2,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            **vision,
        },
    }


def qwen_tokenizer() -> Any:
    """The tokenizer with the published special tokens."""
    return make_tokenizer(
        SPECIAL_TOKENS,
        eos_token=SPECIAL_TOKENS[IM_END],
        pad_token=SPECIAL_TOKENS[ENDOFTEXT],
        model_max_length=131072,
    )


def qwen2_processor(kind: type) -> Any:
    """The processor of this class that Qwen2-VL and Qwen2.5-VL have in common."""
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * LARGEST_IMAGE_TOKENS}
    image_processor = Qwen2VLImageProcessor(size=size)
    return kind(image_processor, qwen_tokenizer(), Qwen2VLVideoProcessor(), chat_template=CHAT_TEMPLATE)


@quiet_transformers()
def write_folder(folder: Path, config: Any, model: type, processor: Any, seed: int) -> Path:
    """Writes the files of a checkpoint with this config and processor."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = Generator().manual_seed(seed)
    words = dict.fromkeys(processor.tokenizer.get_vocab().values(), 1.0)
    head = {**words, **dict.fromkeys(SPECIAL_TOKENS, CONTROL_ROW_SCALE), IM_END: STOP_ROW_SCALE}
    rows = {"model.language_model.embed_tokens.weight": words, "lm_head.weight": head}
    weights = draw_weights(model, config, rows, generator, GAINS)
    save_weights(weights, folder / "model.safetensors")

    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=ENDOFTEXT, eos_token_id=[IM_END, ENDOFTEXT], pad_token_id=ENDOFTEXT).save_pretrained(
        folder
    )
    processor.save_pretrained(folder)
    return folder

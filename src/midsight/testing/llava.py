"""Small, complete LLaVA 1.5 and LLaVA-NeXT checkpoints with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
)

from midsight.testing.random_weights import make_tokenizer, write_checkpoint

BOS, EOS, IMAGE, PAD = 1, 2, 32000, 32001
SPECIAL_TOKENS = {0: "<unk>", BOS: "<s>", EOS: "</s>", IMAGE: "<image>", PAD: "<pad>"}
"""The published ids and tokens."""

VOCABULARY_SIZE = 32064
HIDDEN_SIZE = 32
VISION_SIZE = 16
TILE_PX, PATCH_PX = 56, 14
GRIDS = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
"""Rows and columns of the published grids of tiles."""

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The published template of llava-hf/llava-1.5-7b-hf."""
LLAVA_NEXT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\\n' + message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' }}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{# Render all text next #}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'][0]['text'] + '</s> '}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""The published template of llava-hf/llava-v1.6-mistral-7b-hf."""

STOP_ROW_SCALE = 2.5
"""Scale of the head's row of `</s>`: large enough that it wins now and then, so answers have many lengths."""
CONTROL_ROW_SCALE = 0.01
"""Scale of the head's rows of the other control tokens: so small that no answer contains one."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""

PROCESSOR: dict[str, Any] = {
    "patch_size": PATCH_PX,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def write_llava(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `LlavaForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of llava-hf/llava-1.5-7b-hf, except that squares have 56 pixels. The
    vocabulary is small, and the weights (5 MB, bfloat16) are random. Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    config = LlavaConfig(
        **config_fields("LlavaForConditionalGeneration"),
        text_config={**text_fields(layers), "model_type": "llama", "num_key_value_heads": 4},
        image_seq_length=(TILE_PX // PATCH_PX) ** 2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": TILE_PX}, crop_size={"height": TILE_PX, "width": TILE_PX}),
        tokenizer_of_llava(),
        chat_template=LLAVA_TEMPLATE,
        **PROCESSOR,
    )
    return write_folder(folder, config, LlavaForConditionalGeneration, processor, seed)


def write_llava_next(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `LlavaNextForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of llava-hf/llava-v1.6-mistral-7b-hf, except that tiles have 56
    pixels; otherwise like `write_llava`.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    pinpoints = [[rows * TILE_PX, columns * TILE_PX] for rows, columns in GRIDS]
    config = LlavaNextConfig(
        **config_fields("LlavaNextForConditionalGeneration"),
        text_config={
            **text_fields(layers),
            "model_type": "mistral",
            "num_key_value_heads": 2,
            "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        image_grid_pinpoints=pinpoints,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": TILE_PX},
            crop_size={"height": TILE_PX, "width": TILE_PX},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer_of_llava(),
        chat_template=LLAVA_NEXT_TEMPLATE,
        **PROCESSOR,
    )
    return write_folder(folder, config, LlavaNextForConditionalGeneration, processor, seed)


def tokenizer_of_llava() -> Any:
    """The tokenizer, which puts `<s>` before every text, as the published one does."""
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return make_tokenizer(SPECIAL_TOKENS, first_token=SPECIAL_TOKENS[BOS], model_max_length=4096, **names)


def config_fields(architecture: str) -> dict[str, Any]:
    """What the published configurations have in common, with small widths and few layers."""
    return {
        "architectures": [architecture],
        "dtype": "bfloat16",
        "image_token_index": IMAGE,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": VISION_SIZE,
            "intermediate_size": 2 * VISION_SIZE,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": TILE_PX,
            "patch_size": PATCH_PX,
            "projection_dim": VISION_SIZE,
        },
    }


def text_fields(layers: int) -> dict[str, Any]:
    """The decoder's configuration with small widths and few layers."""
    return {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def write_folder(folder: str | Path, config: Any, model: type, processor: Any, seed: int) -> Path:
    """Writes the files of a checkpoint with this config and processor."""
    generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    head_scales = {**dict.fromkeys(SPECIAL_TOKENS, CONTROL_ROW_SCALE), EOS: STOP_ROW_SCALE}
    return write_checkpoint(
        folder, model, config, processor, generation_config, head_scales=head_scales, gains=GAINS, seed=seed
    )

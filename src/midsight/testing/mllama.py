"""A small, complete Llama 3.2 Vision checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from torch import Generator
from transformers import (
    GenerationConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
)

from midsight.checkpoints.quiet import quiet_transformers
from midsight.testing.random_weights import draw_weights, make_tokenizer, save_weights

BEGIN, PAD, EOT, IMAGE = 128000, 128004, 128009, 128256
SPECIAL_TOKENS = {
    BEGIN: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    PAD: "<|finetune_right_pad_id|>",
    128005: "<|step_id|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128008: "<|eom_id|>",
    EOT: "<|eot_id|>",
    128010: "<|python_tag|>",
    IMAGE: "<|image|>",
}
"""The published ids and tokens."""
STOP_IDS = [128001, 128008, EOT]

HIDDEN_SIZE = 32
MLP_SIZE = 64
VISION_SIZE = 16
VISION_LAYERS = 6
TILE_PX = 112
INTERMEDIATE_LAYERS = [0, 1, 2, 3, 4]

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'system' and messages[1]['content'] | selectattr('type', 'equalto', 'image') | list -%}
        {{- raise_exception('Prompting with images is incompatible with system messages.') -}}
    {%- endif -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}
    {%- for part in message['content'] -%}
        {{- '<|image|>' if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""
"""Renders and refuses what the published template does, for one user turn with images."""

STOP_ROW_SCALE = 8.0
"""Scale of the head's row of `<|eot_id|>`: large enough that it wins now and then, so answers have many lengths."""
CONTROL_ROW_SCALE = 0.01
"""Scale of the head's rows of the other control tokens: so small that no answer contains one."""

GAINS = (
    ("self_attn.q_proj.weight", 2.0),
    ("self_attn.k_proj.weight", 2.0),
    ("cross_attn.q_proj.weight", 2.0),
    ("cross_attn.k_proj.weight", 2.0),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


@quiet_transformers()
def write_mllama(folder: str | Path, *, seed: int = 0, layers: int = 8) -> Path:
    """Writes a small model folder that `MllamaForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of meta-llama/Llama-3.2-11B-Vision-Instruct, except that tiles have
    112 pixels. The vocabulary is small, and the weights (17 MB, bfloat16) are random. Every third layer reads the
    image. Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(layers)
    generator = Generator().manual_seed(seed)
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        bos_token=SPECIAL_TOKENS[BEGIN],
        eos_token=SPECIAL_TOKENS[EOT],
        pad_token=SPECIAL_TOKENS[PAD],
        model_max_length=131072,
    )
    words = dict.fromkeys(tokenizer.get_vocab().values(), 1.0)
    head = {**words, **dict.fromkeys(SPECIAL_TOKENS, CONTROL_ROW_SCALE), EOT: STOP_ROW_SCALE}
    del head[IMAGE]
    rows = {"model.language_model.embed_tokens.weight": words, "lm_head.weight": head}
    weights = draw_weights(MllamaForConditionalGeneration, config, rows, generator, GAINS)
    save_weights(weights, folder / "model.safetensors")

    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=BEGIN, eos_token_id=STOP_IDS, pad_token_id=PAD).save_pretrained(folder)
    image_processor = MllamaImageProcessor(
        size={"height": TILE_PX, "width": TILE_PX},
        max_image_tiles=4,
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    )
    MllamaProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder


def make_config(layers: int) -> MllamaConfig:
    """The published configuration with small widths, small tiles and few layers."""
    return MllamaConfig(
        architectures=["MllamaForConditionalGeneration"],
        dtype="bfloat16",
        image_token_index=IMAGE,
        text_config={
            "vocab_size": IMAGE,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": MLP_SIZE,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "cross_attention_layers": list(range(2, layers, 3)),
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
            "bos_token_id": BEGIN,
            "eos_token_id": STOP_IDS,
            "pad_token_id": PAD,
        },
        vision_config={
            "hidden_size": VISION_SIZE,
            "intermediate_size": 2 * VISION_SIZE,
            "num_hidden_layers": VISION_LAYERS,
            "num_global_layers": 2,
            "attention_heads": 2,
            "image_size": TILE_PX,
            "patch_size": 14,
            "max_num_tiles": 4,
            "intermediate_layers_indices": INTERMEDIATE_LAYERS,
            "vision_output_dim": VISION_SIZE * (1 + len(INTERMEDIATE_LAYERS)),
        },
    )

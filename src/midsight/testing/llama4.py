"""A small, complete Llama 4 checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4ImageProcessor,
    Llama4Processor,
)
from transformers.models.llama4.processing_llama4 import chat_template

from midsight.families.llama4 import FAMILY
from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import HIDDEN_SIZE, VISION_SIZE, decoder_fields

BOS, STOPS, PAD, IMAGE = 200000, [200001, 200007, 200008], 200018, 200092
SPECIAL_TOKENS = {
    BOS: "<|begin_of_text|>",
    200001: "<|end_of_text|>",
    200005: "<|header_start|>",
    200006: "<|header_end|>",
    200007: "<|eom|>",
    200008: "<|eot|>",
    200009: "<|step|>",
    200016: "<|python_start|>",
    200017: "<|python_end|>",
    PAD: "<|finetune_right_pad|>",
    200080: "<|image_start|>",
    200081: "<|image_end|>",
    200084: "<|tile_x_separator|>",
    200085: "<|tile_y_separator|>",
    200090: "<|image|>",
    IMAGE: "<|patch|>",
}
"""The published ids and tokens, without those that are reserved."""

TILE_PX, PATCH_PX = 56, 14
CHUNK, TEMPERATURE_STEP = 32, 16
"""Tokens after which a chunk ends and after which attention becomes sharper; prompts are longer."""

HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.01), 200008: 2.5}
"""Scales of the head's rows of control tokens: `<|eot|>` wins now and then, so that answers have many lengths, and no
answer contains another one."""

GAINS = (
    ("experts.gate_up_proj", 2.0),
    ("experts.down_proj", 1.4),
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
)
"""For experts, the square root of outputs by inputs, whose weights have their inputs first."""


def write_llama4(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Llama4ForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of meta-llama/Llama-4-Scout-17B-16E-Instruct, except that tiles have
    56 pixels. Chunks have 32 tokens. Every fourth layer reads the whole prompt, with a temperature that changes every
    16 tokens; every second one has experts, as in Maverick. The vocabulary is small, and the weights (27 MB, bfloat16)
    are random. Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    names = {"bos": BOS, "eos": 200008, "pad": PAD}
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        first_token=SPECIAL_TOKENS[BOS],
        model_max_length=10485760,
        **{f"{name}_token": SPECIAL_TOKENS[one] for name, one in names.items()},
    )
    return write_checkpoint(
        folder,
        Llama4ForConditionalGeneration,
        make_config(layers),
        Llama4Processor(
            Llama4ImageProcessor(size={"height": TILE_PX, "width": TILE_PX}),
            tokenizer,
            patch_size=PATCH_PX,
            chat_template=chat_template,
        ),
        GenerationConfig(bos_token_id=BOS, eos_token_id=STOPS, pad_token_id=PAD),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
        modules=FAMILY.modules,
    )


def make_config(layers: int) -> Llama4Config:
    """The published configuration with small widths, tiles and chunks, and few layers."""
    return Llama4Config(
        architectures=["Llama4ForConditionalGeneration"],
        dtype="bfloat16",
        boi_token_index=200080,
        eoi_token_index=200081,
        image_token_index=IMAGE,
        tie_word_embeddings=False,
        text_config=decoder_fields(
            "llama4_text",
            layers,
            202048,
            head_dim=16,
            intermediate_size_mlp=2 * HIDDEN_SIZE,
            num_local_experts=4,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            attention_chunk_size=CHUNK,
            floor_scale=TEMPERATURE_STEP,
            max_position_embeddings=10485760,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            bos_token_id=BOS,
            eos_token_id=STOPS,
            pad_token_id=PAD,
        ),
        vision_config=vision_fields(),
    )


def vision_fields() -> dict[str, Any]:
    """The encoder's configuration with small widths and few layers."""
    return {
        "model_type": "llama4_vision_model",
        "hidden_size": VISION_SIZE,
        "intermediate_size": 4 * VISION_SIZE,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
        "projector_input_dim": HIDDEN_SIZE,
        "projector_output_dim": HIDDEN_SIZE,
        "vision_output_dim": HIDDEN_SIZE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }

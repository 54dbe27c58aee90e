"""A small, complete DeepSeek-VL checkpoint with two encoders and random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    DeepseekVLHybridImageProcessor,
    DeepseekVLHybridProcessor,
    GenerationConfig,
)

from midsight.testing.deepseek_vl import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    HEAD_SCALES,
    IMAGE,
    PATCH_PX,
    SQUARE_PX,
    VISION_SIZE,
    decoder_fields,
    make_own_tokenizer,
    vision_fields,
)
from midsight.testing.llava import GAINS
from midsight.testing.random_weights import write_checkpoint

LARGE_PX = 128


def write_deepseek_vl_hybrid(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `DeepseekVLHybridForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of deepseek-community/deepseek-vl-7b-chat, except that squares have
    64 and 128 pixels. The vocabulary is small, and the weights (13 MB, bfloat16) are random. Embedding rows without a
    token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    processor = DeepseekVLHybridProcessor(
        DeepseekVLHybridImageProcessor(
            size={"height": SQUARE_PX, "width": SQUARE_PX},
            high_res_size={"height": LARGE_PX, "width": LARGE_PX},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
            resample=2,
        ),
        make_own_tokenizer(),
        chat_template=CHAT_TEMPLATE,
        num_image_tokens=(SQUARE_PX // PATCH_PX) ** 2,
    )
    return write_checkpoint(
        folder,
        DeepseekVLHybridForConditionalGeneration,
        make_config(layers),
        processor,
        GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS),
        head_scales=HEAD_SCALES,
        gains=(*GAINS, ("pos_embed", 16.0)),
        seed=seed,
    )


def make_config(layers: int) -> DeepseekVLHybridConfig:
    """The published configuration with small widths, small squares and few layers; the head is not the embedding."""
    return DeepseekVLHybridConfig(
        architectures=["DeepseekVLHybridForConditionalGeneration"],
        dtype="bfloat16",
        image_token_id=IMAGE,
        tie_word_embeddings=False,
        text_config=decoder_fields(layers),
        vision_config=vision_fields(),
        high_res_vision_config={
            "model_type": "sam_vision_model",
            "hidden_size": VISION_SIZE,
            "output_channels": VISION_SIZE // 4,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": LARGE_PX,
            "patch_size": PATCH_PX,
            "window_size": 3,
            "global_attn_indexes": [1, 3],
        },
    )

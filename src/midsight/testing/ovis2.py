"""A small, complete Ovis2 checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    GenerationConfig,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2ImageProcessor,
    Ovis2Processor,
)

from midsight.testing import internvl
from midsight.testing.llava_onevision import ENDOFTEXT, IM_END, qwen2_fields
from midsight.testing.random_weights import make_tokenizer, write_checkpoint

IMAGE = 151665
SPECIAL_TOKENS = {
    ENDOFTEXT: "<|endoftext|>",
    151644: "<|im_start|>",
    IM_END: "<|im_end|>",
    IMAGE: "<IMG_ATOM>",
    151666: "<IMG_START>",
    151667: "<IMG_GRID>",
    151668: "<IMG_COL>",
    151669: "<IMG_ROW>",
    151670: "<IMG_END>",
}
"""The published ids and tokens."""

VOCABULARY_SIZE = 151936
HIDDEN_SIZE = 32
VISION_SIZE = 16
TILE_PX, PATCH_PX, STRIDE = 56, 14, 2
MOST_TILES = 9

SYSTEM_TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CHAT_TEMPLATE = SYSTEM_TURN + internvl.CHAT_TEMPLATE.replace("<IMG_CONTEXT>", "<image>")
"""Renders what the template of transformers' conversion script does."""

HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.01), IM_END: 3.0}
"""Scales of the head's rows of control tokens: `<|im_end|>` wins now and then, so that answers have many lengths, and
no answer contains another one."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
    ("visual_embeddings_table.weight", 24.0),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


def write_ovis2(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Ovis2ForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of thisisiron/Ovis2-1B-hf, except that tiles have 56 pixels, that
    there are at most nine, and that the head is not the embedding. The vocabulary is small, and the weights (20 MB,
    bfloat16) are random. Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        eos_token=SPECIAL_TOKENS[IM_END],
        pad_token=SPECIAL_TOKENS[ENDOFTEXT],
        model_max_length=32768,
    )
    processor = Ovis2Processor(
        Ovis2ImageProcessor(size={"height": TILE_PX, "width": TILE_PX}, crop_to_patches=True, max_patches=MOST_TILES),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        image_seq_length=(TILE_PX // PATCH_PX // STRIDE) ** 2,
    )
    return write_checkpoint(
        folder,
        Ovis2ForConditionalGeneration,
        make_config(layers),
        processor,
        GenerationConfig(bos_token_id=ENDOFTEXT, eos_token_id=IM_END, pad_token_id=ENDOFTEXT),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
    )


def make_config(layers: int) -> Ovis2Config:
    """The published configuration with small widths, small tiles and few layers."""
    return Ovis2Config(
        architectures=["Ovis2ForConditionalGeneration"],
        dtype="bfloat16",
        vocab_size=VOCABULARY_SIZE,
        hidden_size=HIDDEN_SIZE,
        tie_word_embeddings=False,
        text_config=qwen2_fields(layers, VOCABULARY_SIZE, max_positions=32768),
        vision_config={
            "hidden_size": VISION_SIZE,
            "intermediate_size": 2 * VISION_SIZE,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": TILE_PX,
            "patch_size": PATCH_PX,
            "hidden_stride": STRIDE,
            "vocab_size": 69,
        },
    )

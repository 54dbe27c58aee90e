"""A small, complete PaliGemma 2 checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    GenerationConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
)

from midsight.families.paligemma import TEMPLATE
from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import HIDDEN_SIZE, VISION_SIZE, decoder_fields, siglip_fields

PAD, EOS, BOS, IMAGE = 0, 1, 2, 257152
SPECIAL_TOKENS = {
    PAD: "<pad>",
    EOS: "<eos>",
    BOS: "<bos>",
    3: "<unk>",
    **{256000 + place: f"<loc{place:0>4}>" for place in range(1024)},
    **{257024 + segment: f"<seg{segment:0>3}>" for segment in range(128)},
    IMAGE: "<image>",
}
"""The published ids and tokens; those of places and segments are said of the first PaliGemma."""

VOCABULARY_SIZE = 257216
IMAGE_PX, PATCH_PX = 56, 14
SLIDING_WINDOW = 40

WORD_SCALE = 0.3
HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.003), EOS: 1.2}
"""Scales of embedding rows, which are those of the head too: `<eos>` wins now and then, so that answers have many
lengths, and no answer contains another control token."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


def write_paligemma(folder: str | Path, *, seed: int = 1, layers: int = 6) -> Path:
    """Writes a small model folder that `PaliGemmaForConditionalGeneration` loads.

    Special tokens and processor are those of google/paligemma2-3b-mix-224, except that images have 56 pixels, and the
    window of the sliding layers has 40 tokens. The folder has a chat template, which the published one lacks. The
    vocabulary is small, and the weights (17 MB, bfloat16) are random. Every second layer slides. The head is the
    embedding. Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights; with 1, answers have many lengths.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        pad_token=SPECIAL_TOKENS[PAD],
        eos_token=SPECIAL_TOKENS[EOS],
        bos_token=SPECIAL_TOKENS[BOS],
        unk_token=SPECIAL_TOKENS[3],
        extra_special_tokens={"image_token": SPECIAL_TOKENS[IMAGE]},
        model_max_length=8192,
    )
    image_processor = SiglipImageProcessor(
        size={"height": IMAGE_PX, "width": IMAGE_PX}, image_seq_length=(IMAGE_PX // PATCH_PX) ** 2
    )
    return write_checkpoint(
        folder,
        PaliGemmaForConditionalGeneration,
        make_config(layers),
        PaliGemmaProcessor(image_processor, tokenizer, chat_template=TEMPLATE),
        GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
        word_scale=WORD_SCALE,
        norms_add_one=True,
    )


def make_config(layers: int) -> PaliGemmaConfig:
    """The published configuration with small widths, small images, a small window and few layers."""
    return PaliGemmaConfig(
        architectures=["PaliGemmaForConditionalGeneration"],
        dtype="bfloat16",
        image_token_index=IMAGE,
        projection_dim=HIDDEN_SIZE,
        hidden_size=HIDDEN_SIZE,
        text_config=decoder_fields(
            "gemma2",
            layers,
            VOCABULARY_SIZE,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=SLIDING_WINDOW,
        ),
        vision_config=siglip_fields(VISION_SIZE, IMAGE_PX, PATCH_PX),
    )

"""A small, complete Aya Vision checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    GenerationConfig,
    GotOcr2ImageProcessor,
)

from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import HIDDEN_SIZE, VISION_SIZE, decoder_fields, siglip_fields

PAD, BOS, END, IMAGE = 0, 5, 255001, 255036
SPECIAL_TOKENS = {
    PAD: "<PAD>",
    1: "<UNK>",
    BOS: "<BOS_TOKEN>",
    255000: "<|START_OF_TURN_TOKEN|>",
    END: "<|END_OF_TURN_TOKEN|>",
    255006: "<|USER_TOKEN|>",
    255007: "<|CHATBOT_TOKEN|>",
    255008: "<|SYSTEM_TOKEN|>",
    255033: "<|START_OF_IMG|>",
    255034: "<|END_OF_IMG|>",
    255035: "<|IMG_LINE_BREAK|>",
    IMAGE: "<|IMG_PATCH|>",
    255037: "<image>",
}
"""The published tokens and ids; that of `<image>`, which no prompt has when it is tokenised, is a guess."""

VOCABULARY_SIZE = 255040
TILE_PX, PATCH_PX, JOINED = 56, 14, 2
MOST_TILES = 9
SLIDING_WINDOW = 40

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set name = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[message['role']] %}"
    "{{ '<|START_OF_TURN_TOKEN|><|' + name + '_TOKEN|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>' }}{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
"""Renders the prompt that vLLM has for CohereLabs/aya-vision-8b; its own template was not at hand."""

WORD_SCALE = 0.3
HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.003), END: 0.9}
"""Scales of embedding rows, which are those of the head too: `<|END_OF_TURN_TOKEN|>` wins now and then, so that answers
have many lengths, and no answer contains another control token."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
    ("o_proj.weight", 1.4),
    ("down_proj.weight", 1.4),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


def write_aya_vision(folder: str | Path, *, seed: int = 1, layers: int = 6) -> Path:
    """Writes a small model folder that `AyaVisionForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of CohereLabs/aya-vision-8b, except that tiles have 56 pixels, that
    there are at most nine, and that the window of the sliding layers has 40 tokens. The vocabulary is small, and the
    weights (17 MB, bfloat16) are random. Every fourth layer reads the whole prompt. The head is the embedding.
    Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights; with 1, answers have many lengths.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    names = {name: SPECIAL_TOKENS[one] for name, one in {"pad": PAD, "unk": 1, "bos": BOS, "eos": END}.items()}
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        first_token=SPECIAL_TOKENS[BOS],
        model_max_length=8192,
        **{f"{name}_token": token for name, token in names.items()},
    )
    image_processor = GotOcr2ImageProcessor(
        size={"height": TILE_PX, "width": TILE_PX},
        crop_to_patches=False,
        min_patches=1,
        max_patches=MOST_TILES,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return write_checkpoint(
        folder,
        AyaVisionForConditionalGeneration,
        make_config(layers),
        AyaVisionProcessor(
            image_processor, tokenizer, patch_size=PATCH_PX * JOINED, img_size=TILE_PX, chat_template=CHAT_TEMPLATE
        ),
        GenerationConfig(bos_token_id=BOS, eos_token_id=END, pad_token_id=PAD),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
        word_scale=WORD_SCALE,
    )


def make_config(layers: int) -> AyaVisionConfig:
    """The published configuration with small widths, small tiles, a small window and few layers."""
    own: dict[str, Any] = {"alignment_intermediate_size": 4 * HIDDEN_SIZE}
    return AyaVisionConfig(
        architectures=["AyaVisionForConditionalGeneration"],
        dtype="bfloat16",
        image_token_index=IMAGE,
        downsample_factor=JOINED,
        text_config=decoder_fields(
            "cohere2",
            layers,
            VOCABULARY_SIZE,
            logit_scale=0.25,
            sliding_window=SLIDING_WINDOW,
            rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        ),
        vision_config=siglip_fields(VISION_SIZE, TILE_PX, PATCH_PX),
        **own,
    )

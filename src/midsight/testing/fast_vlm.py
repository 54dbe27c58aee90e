"""A small, complete FastVLM checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    GenerationConfig,
    LlavaProcessor,
)

from midsight.testing.llava_onevision import ENDOFTEXT, IM_END, IMAGE, qwen2_fields
from midsight.testing.random_weights import make_tokenizer, write_checkpoint

SPECIAL_TOKENS = {ENDOFTEXT: "<|endoftext|>", 151644: "<|im_start|>", IM_END: "<|im_end|>", IMAGE: "<image>"}
"""The published ids and tokens."""

VOCABULARY_SIZE = 151647
STAGES = (8, 8, 16, 32, 32)
"""Widths of the encoder's five stages, of one block each; timm's heads of attention are 32 wide."""
SQUARE_PX, PATCH_PX = 256, 64

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n'}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{# Render all text next #}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{{'<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template of transformers' conversion script."""

HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.01), IM_END: 2.6}
"""Scales of the head's rows of control tokens: `<|im_end|>` wins now and then, so that answers have many lengths, and
no answer contains another one."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
    ("reparam_conv.weight", 1.7),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


def write_fast_vlm(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `FastVlmForConditionalGeneration` loads; needs the package timm.

    Special tokens, prompt and processor are those of KamilaMila/FastVLM-7B, except that squares have 256 pixels. The
    vocabulary is small, and the weights (20 MB, bfloat16) are random. Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    end = SPECIAL_TOKENS[ENDOFTEXT]
    tokenizer = make_tokenizer(SPECIAL_TOKENS, eos_token=end, pad_token=end, model_max_length=32768)
    processor = LlavaProcessor(
        CLIPImageProcessor(
            size={"shortest_edge": SQUARE_PX},
            crop_size={"height": SQUARE_PX, "width": SQUARE_PX},
            image_mean=[0.0, 0.0, 0.0],
            image_std=[1.0, 1.0, 1.0],
        ),
        tokenizer,
        patch_size=PATCH_PX,
        chat_template=CHAT_TEMPLATE,
    )
    return write_checkpoint(
        folder,
        FastVlmForConditionalGeneration,
        make_config(layers),
        processor,
        GenerationConfig(bos_token_id=ENDOFTEXT, eos_token_id=IM_END, pad_token_id=ENDOFTEXT),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
    )


def make_config(layers: int) -> FastVlmConfig:
    """The published configuration with small widths, small squares and few layers."""
    return FastVlmConfig(
        architectures=["FastVlmForConditionalGeneration"],
        dtype="bfloat16",
        image_token_index=IMAGE,
        image_seq_length=(SQUARE_PX // PATCH_PX) ** 2,
        text_config=qwen2_fields(layers, VOCABULARY_SIZE, max_positions=131072),
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": 2 * STAGES[-1],
            "model_args": {"inference_mode": True, "layers": [1] * len(STAGES), "embed_dims": list(STAGES)},
        },
    )

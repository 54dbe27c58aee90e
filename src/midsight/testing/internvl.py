"""A small, complete InternVL 3 checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from torch import Generator
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from midsight.checkpoints.quiet import quiet_transformers
from midsight.testing.random_weights import draw_weights, make_tokenizer, save_weights

ENDOFTEXT, IM_END, IMAGE = 151643, 151645, 151667
SPECIAL_TOKENS = {
    ENDOFTEXT: "<|endoftext|>",
    151644: "<|im_start|>",
    IM_END: "<|im_end|>",
    151665: "<img>",
    151666: "</img>",
    IMAGE: "<IMG_CONTEXT>",
    151674: "<video>",
}
"""The published tokens and ids; that of `<video>`, which no image prompt has, is a guess."""

VOCABULARY_SIZE = 151675
HIDDEN_SIZE = 32
VISION_SIZE = 16
TILE_PX, PATCH_PX = 56, 14
MOST_TILES = 9

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
"""The published template of OpenGVLab/InternVL3-1B-hf."""

STOP_ROW_SCALE = 3.0
"""Scale of the head's row of `<|im_end|>`: large enough that it wins now and then, so answers have many lengths."""
CONTROL_ROW_SCALE = 0.01
"""Scale of the head's rows of the other control tokens: so small that no answer contains one."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
    ("position_embeddings", 16.0),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


@quiet_transformers()
def write_internvl(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `InternVLForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of OpenGVLab/InternVL3-1B-hf, except that tiles have 56 pixels and
    that there are at most nine. The vocabulary is small, and the weights (20 MB, bfloat16) are random. Embedding rows
    without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        eos_token=SPECIAL_TOKENS[IM_END],
        pad_token=SPECIAL_TOKENS[ENDOFTEXT],
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        model_max_length=8192,
    )
    words = dict.fromkeys(tokenizer.get_vocab().values(), 1.0)
    head = {**words, **dict.fromkeys(SPECIAL_TOKENS, CONTROL_ROW_SCALE), IM_END: STOP_ROW_SCALE}
    rows = {"model.language_model.embed_tokens.weight": words, "lm_head.weight": head}
    config = make_config(layers)
    weights = draw_weights(InternVLForConditionalGeneration, config, rows, Generator().manual_seed(seed), GAINS)
    save_weights(weights, folder / "model.safetensors")
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=IM_END, pad_token_id=ENDOFTEXT).save_pretrained(folder)
    image_processor = GotOcr2ImageProcessor(
        size={"height": TILE_PX, "width": TILE_PX},
        crop_to_patches=False,
        min_patches=1,
        max_patches=MOST_TILES,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    processor = InternVLProcessor(
        image_processor,
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=(TILE_PX // PATCH_PX // 2) ** 2,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return folder


def make_config(layers: int) -> InternVLConfig:
    """The published configuration with small widths, small tiles and few layers."""
    return InternVLConfig(
        architectures=["InternVLForConditionalGeneration"],
        dtype="bfloat16",
        image_token_id=IMAGE,
        image_seq_length=(TILE_PX // PATCH_PX // 2) ** 2,
        tie_word_embeddings=False,
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000000.0},
            "bos_token_id": ENDOFTEXT,
            "eos_token_id": IM_END,
        },
        vision_config={
            "hidden_size": VISION_SIZE,
            "intermediate_size": 2 * VISION_SIZE,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "attention_bias": True,
            "image_size": [TILE_PX, TILE_PX],
            "patch_size": [PATCH_PX, PATCH_PX],
        },
    )

"""Model folders of types that midsight does not know, larger than the copies that `midsight adapter` makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    GenerationConfig,
    GotOcr2ImageProcessor,
)

from midsight.checkpoints.quiet import quiet_transformers
from midsight.testing.random_weights import make_tokenizer

PAD, BOS, END = 200100, 200101, 200102
IMAGE_PATCH = 200107
SPECIAL_TOKENS = {
    PAD: "<PAD>",
    BOS: "<BOS_TOKEN>",
    END: "<|END_OF_TURN_TOKEN|>",
    200103: "<|START_OF_TURN_TOKEN|>",
    200104: "<|USER_TOKEN|>",
    200105: "<|CHATBOT_TOKEN|>",
    200106: "<image>",
    IMAGE_PATCH: "<|IMG_PATCH|>",
    200108: "<|START_OF_IMG|>",
    200109: "<|END_OF_IMG|>",
    200110: "TILE",
    200111: "TILE_GLOBAL",
}
VOCABULARY_SIZE = 200192
AYA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{{ '<|USER_TOKEN|>' if message['role'] == 'user' else '<|CHATBOT_TOKEN|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)


@quiet_transformers()
def write_aya_vision(folder: Path) -> Path:
    """Aya Vision: tiles with text between them, a projector that joins patches, and a decoder with sliding layers."""
    own: Any = {"alignment_intermediate_size": 192}
    config = AyaVisionConfig(
        architectures=["AyaVisionForConditionalGeneration"],
        image_token_index=IMAGE_PATCH,
        **own,
        text_config={
            "model_type": "cohere2",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "sliding_window": 64,
            "bos_token_id": BOS,
            "eos_token_id": END,
            "pad_token_id": PAD,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
    )
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        first_token=SPECIAL_TOKENS[BOS],
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[END],
        pad_token=SPECIAL_TOKENS[PAD],
        model_max_length=8192,
    )
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessor(size={"height": 56, "width": 56}, max_patches=4),
        tokenizer,
        patch_size=14,
        img_size=56,
        downsample_factor=2,
        chat_template=AYA_TEMPLATE,
    )
    return write(folder, config, AyaVisionForConditionalGeneration, processor, END)


def write(folder: Path, config: Any, model: Any, processor: Any, stop_id: int) -> Path:
    """Writes a folder whose weights are random and large enough that states differ."""
    torch.manual_seed(0)
    made = model(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() > 1:
                weight.mul_(5)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
    made.generation_config = GenerationConfig(eos_token_id=stop_id)
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

"""Configurations of small parts that several checkpoints have."""

from __future__ import annotations

from typing import Any

HIDDEN_SIZE = 32
VISION_SIZE = 16


def decoder_fields(model_type: str, layers: int, vocabulary_size: int, **others: Any) -> dict[str, Any]:
    """A decoder's configuration with small widths and few layers."""
    return {
        "model_type": model_type,
        "vocab_size": vocabulary_size,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **others,
    }


def siglip_fields(width: int, side_px: int, patch_px: int) -> dict[str, Any]:
    """SigLIP's configuration with this width and few layers."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side_px,
        "patch_size": patch_px,
        "vision_use_head": False,
    }

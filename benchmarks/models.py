"""Phi-4-multimodal models with random weights, in the sizes that are timed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, Phi4MultimodalForCausalLM

from midsight.testing import write_phi4_multimodal
from midsight.testing.phi4_multimodal import make_config

WIDTHS: dict[str, dict[str, int]] = {
    "demo": {},
    "mid": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "num_attention_heads": 8},
    "full": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24},
}
"""Decoder sizes that differ from the random checkpoint of `midsight demo --checkpoint-only`."""
KEY_VALUE_HEADS = {"mid": 4, "full": 8}
VISION: dict[str, dict[str, int]] = {
    "mid": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 4},
    "full": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
}


def random_model(size: str, device: str) -> tuple[Any, Any]:
    """A model in eval mode, float32 on a CPU and bfloat16 on a GPU, and its processor."""
    with tempfile.TemporaryDirectory() as folder:
        processor = AutoProcessor.from_pretrained(write_phi4_multimodal(Path(folder), lora=False))
        if size == "demo":
            model: Any = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=torch.float32)
            return model.eval().to(device), processor
    config: Any = make_config(layers=WIDTHS[size]["num_hidden_layers"], original_max_position_embeddings=4096)
    for name, value in {**WIDTHS[size], "num_key_value_heads": KEY_VALUE_HEADS[size]}.items():
        setattr(config, name, value)
    for name, value in VISION[size].items():
        setattr(config.vision_config, name, value)
    head = config.hidden_size // config.num_attention_heads
    factors = int(head * config.rope_parameters["partial_rotary_factor"]) // 2
    for name in ("short_factor", "long_factor"):
        config.rope_parameters[name] = [1.0 + i / factors for i in range(factors)]
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = Phi4MultimodalForCausalLM._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = [200020, 199999]
    model.generation_config.pad_token_id = 199999
    return model.eval(), processor

"""Qwen2-VL: as Qwen2.5-VL, with attention over the whole image in every block of the encoder.

Source of the modules: transformers' modeling_qwen2_vl.py; the prompt is that of Qwen/Qwen2-VL-7B-Instruct.
"""

from __future__ import annotations

from dataclasses import replace

from midsight.models import qwen2_5_vl

ADAPTER = replace(
    qwen2_5_vl.ADAPTER,
    family="Qwen2-VL",
    architecture="Qwen2VLForConditionalGeneration",
    # in this config `hidden_size` is the decoder's
    vision_width=lambda config: config.vision_config.embed_dim,
)

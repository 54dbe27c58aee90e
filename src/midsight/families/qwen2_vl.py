"""Qwen2-VL: like Qwen2.5-VL, with attention over the whole image in every block of the encoder.

Source of the modules: transformers' modeling_qwen2_vl.py; the prompt is that of Qwen/Qwen2-VL-7B-Instruct.
"""

from __future__ import annotations

from dataclasses import replace

from midsight.families import qwen2_5_vl

FAMILY = replace(
    qwen2_5_vl.FAMILY,
    name="Qwen2-VL",
    architecture="Qwen2VLForConditionalGeneration",
    # in this config `hidden_size` is the decoder's
    vision=replace(qwen2_5_vl.FAMILY.vision, width=lambda config: config.vision_config.embed_dim),
)

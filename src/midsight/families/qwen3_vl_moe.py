"""Qwen3-VL with a mixture of experts in its decoder.

Source of the prompt: that of Qwen3-VL, whose chat template Qwen/Qwen3-VL-30B-A3B-Instruct shares; of the modules:
transformers' modeling_qwen3_vl_moe.py.
"""

from __future__ import annotations

from dataclasses import replace

from midsight.families import qwen3_vl

FAMILY = replace(qwen3_vl.FAMILY, name="Qwen3-VL-MoE", architecture="Qwen3VLMoeForConditionalGeneration")

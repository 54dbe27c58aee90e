"""Qwen3.5 with a mixture of experts in its decoder.

Source of the prompt: that of Qwen3.5; of the modules: transformers' modeling_qwen3_5_moe.py.
"""

from __future__ import annotations

from dataclasses import replace

from midsight.families import qwen3_5

FAMILY = replace(qwen3_5.FAMILY, name="Qwen3.5-MoE", architecture="Qwen3_5MoeForConditionalGeneration")

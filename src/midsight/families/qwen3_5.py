"""Qwen3.5: Qwen3-VL's encoder without its earlier blocks; three of four decoder layers keep a state in place of keys.

Source of the prompt: the chat template of Qwen/Qwen3.5-27B; of the modules: transformers' modeling_qwen3_5.py.
"""

from __future__ import annotations

from dataclasses import replace

from midsight.families import qwen2_5_vl
from midsight.families.family import StoredTensors
from midsight.families.qwen2_5_vl import IMAGE_MARKUP

FAMILY = replace(
    qwen2_5_vl.FAMILY,
    name="Qwen3.5",
    architecture="Qwen3_5ForConditionalGeneration",
    prompt=replace(
        qwen2_5_vl.FAMILY.prompt,
        published=f"<|im_start|>user\n{IMAGE_MARKUP}{{question}}<|im_end|>\n<|im_start|>assistant\n<think>\n",
    ),
    stored=StoredTensors(),
)

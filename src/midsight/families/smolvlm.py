"""SmolVLM and SmolVLM2: Idefics3's tiles before a smaller decoder.

Source of the prompt: the chat template of HuggingFaceTB/SmolVLM2-2.2B-Instruct; of the modules: transformers'
modeling_smolvlm.py.
"""

from __future__ import annotations

from dataclasses import replace

from midsight.families import idefics3

FAMILY = replace(
    idefics3.FAMILY,
    name="SmolVLM2",
    architecture="SmolVLMForConditionalGeneration",
    prompt=replace(idefics3.FAMILY.prompt, published=idefics3.published_prompt("<|im_start|>")),
)

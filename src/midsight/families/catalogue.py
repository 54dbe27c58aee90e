"""The families that midsight knows: architecture name to module, imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from midsight.errors import MidsightError, quoted

if TYPE_CHECKING:
    from midsight.families.family import Family

FAMILIES = {
    "Phi4MultimodalForCausalLM": "midsight.families.phi4_multimodal",
    "MllamaForConditionalGeneration": "midsight.families.mllama",
    "Qwen2_5_VLForConditionalGeneration": "midsight.families.qwen2_5_vl",
    "Qwen2VLForConditionalGeneration": "midsight.families.qwen2_vl",
    "Qwen3VLForConditionalGeneration": "midsight.families.qwen3_vl",
    "Glm4vForConditionalGeneration": "midsight.families.glm4v",
    "Glm4vMoeForConditionalGeneration": "midsight.families.glm4v_moe",
    "Qwen3VLMoeForConditionalGeneration": "midsight.families.qwen3_vl_moe",
    "Qwen3_5ForConditionalGeneration": "midsight.families.qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "midsight.families.qwen3_5_moe",
    "LlavaForConditionalGeneration": "midsight.families.llava",
    "LlavaNextForConditionalGeneration": "midsight.families.llava_next",
    "LlavaOnevisionForConditionalGeneration": "midsight.families.llava_onevision",
    "DeepseekVLForConditionalGeneration": "midsight.families.deepseek_vl",
    "DeepseekVLHybridForConditionalGeneration": "midsight.families.deepseek_vl_hybrid",
    "FastVlmForConditionalGeneration": "midsight.families.fast_vlm",
    "Gemma3ForConditionalGeneration": "midsight.families.gemma3",
    "Gemma3nForConditionalGeneration": "midsight.families.gemma3n",
    "Gemma4ForConditionalGeneration": "midsight.families.gemma4",
    "Idefics3ForConditionalGeneration": "midsight.families.idefics3",
    "SmolVLMForConditionalGeneration": "midsight.families.smolvlm",
    "InternVLForConditionalGeneration": "midsight.families.internvl",
    "Ovis2ForConditionalGeneration": "midsight.families.ovis2",
    "AyaVisionForConditionalGeneration": "midsight.families.aya_vision",
    "Mistral3ForConditionalGeneration": "midsight.families.mistral3",
    "Llama4ForConditionalGeneration": "midsight.families.llama4",
    "PaliGemmaForConditionalGeneration": "midsight.families.paligemma",
    "Molmo2ForConditionalGeneration": "midsight.families.molmo2",
}
"""Architecture, as in config.json, to the module that holds its FAMILY."""

WITH_ENCODER = {("LlavaForConditionalGeneration", "pixtral"): "midsight.families.pixtral"}
"""Architecture and `model_type` of its vision_config to the module of a family of its own: one class of transformers
may stand for two families."""

PUBLISHED_TYPES = ("phi4mm",)
"""`model_type` of published formats, whose architecture transformers does not have."""


def without_task(architecture: str) -> str:
    """The name of a class of transformers without its task, as in `Qwen2VL`."""
    return architecture.partition("For")[0]


def what_is_known(asked: str) -> str:
    """How an error about an unknown family ends; `asked` is its architecture or `model_type`."""
    names = {without_task(architecture).lower(): without_task(architecture) for architecture in FAMILIES}
    near = get_close_matches(without_task(asked).replace("_", "").lower(), names, n=1)
    nearest = f" (the nearest name is {names[near[0]]})" if near else ""
    return (
        f"midsight knows {len(FAMILIES) + len(WITH_ENCODER)} families, which `midsight models` lists{nearest}; for "
        "others try `midsight adapter MODEL` or see the page 'Adding a model'"
    )


def find_family(architectures: Sequence[str], config: Mapping[str, Any], source: str) -> Family:
    """The family of the first architecture that midsight knows.

    `config` is the content of the model's config.json; `source` names the model in the error.
    """
    architecture = find_known(architectures, source)
    vision = config.get("vision_config")
    encoder = vision.get("model_type") if isinstance(vision, Mapping) else None
    module = WITH_ENCODER.get((architecture, str(encoder)), FAMILIES[architecture])
    return importlib.import_module(module).FAMILY


def find_known(architectures: Sequence[str], source: str) -> str:
    """The first architecture that midsight knows; imports no family. Raises MidsightError if it knows none."""
    for architecture in architectures:
        if architecture in FAMILIES:
            return architecture
    found = quoted(", ".join(map(str, architectures)), 60) or "none"
    raise MidsightError(f"{source} has the architecture {found}, which is not known; {what_is_known(found)}.")

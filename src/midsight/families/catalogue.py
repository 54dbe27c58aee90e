"""The families that midsight knows: architecture name to module, imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    "Qwen3VLMoeForConditionalGeneration": "midsight.families.qwen3_vl_moe",
    "LlavaForConditionalGeneration": "midsight.families.llava",
    "LlavaNextForConditionalGeneration": "midsight.families.llava_next",
    "LlavaOnevisionForConditionalGeneration": "midsight.families.llava_onevision",
    "DeepseekVLForConditionalGeneration": "midsight.families.deepseek_vl",
    "FastVlmForConditionalGeneration": "midsight.families.fast_vlm",
    "Gemma3ForConditionalGeneration": "midsight.families.gemma3",
    "Idefics3ForConditionalGeneration": "midsight.families.idefics3",
    "SmolVLMForConditionalGeneration": "midsight.families.smolvlm",
    "InternVLForConditionalGeneration": "midsight.families.internvl",
    "Ovis2ForConditionalGeneration": "midsight.families.ovis2",
    "AyaVisionForConditionalGeneration": "midsight.families.aya_vision",
    "Mistral3ForConditionalGeneration": "midsight.families.mistral3",
    "PaliGemmaForConditionalGeneration": "midsight.families.paligemma",
    "Molmo2ForConditionalGeneration": "midsight.families.molmo2",
}
"""Architecture, as in config.json, to the module that holds its FAMILY."""

PUBLISHED_TYPES = ("phi4mm",)
"""`model_type` of published formats, whose architecture transformers does not have."""


def without_task(architecture: str) -> str:
    """The name of a class of transformers without its task, as in `Qwen2VL`."""
    return architecture.partition("For")[0]


KNOWN = (
    f"midsight knows {', '.join(map(without_task, FAMILIES))}; for others try `midsight adapter MODEL` or see the page "
    "'Adding a model'"
)
"""How an error about an unknown family ends."""


def find_family(architectures: Sequence[str], source: str) -> Family:
    """The family of the first architecture that midsight knows; `source` names the model in the error."""
    return importlib.import_module(FAMILIES[find_known(architectures, source)]).FAMILY


def find_known(architectures: Sequence[str], source: str) -> str:
    """The first architecture that midsight knows; imports no family. Raises MidsightError if it knows none."""
    for architecture in architectures:
        if architecture in FAMILIES:
            return architecture
    found = quoted(", ".join(map(str, architectures)), 60) or "none"
    raise MidsightError(f"{source} has the architecture {found}, which is not known; {KNOWN}.")

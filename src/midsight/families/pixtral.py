"""Pixtral 12B: LLaVA's class with Pixtral's encoder; as in Mistral 3, but no patches are merged.

Source of the prompt: the chat template of mistral-community/pixtral-12b as two public projects repeat it, and
transformers' processing_pixtral.py for what it writes for an image; of the modules: transformers' modeling_llava.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from midsight.errors import MidsightError
from midsight.families import llava, mistral3
from midsight.families.inputs import ImageInputs
from midsight.families.mistral3 import IMAGE_TOKEN


def validate_processor(processor: Any, config: Any) -> None:
    """As for Mistral 3; raises MidsightError if LLaVA's class would leave the first patch out, as CLIP's CLS."""
    if config.vision_feature_select_strategy != "full":
        raise MidsightError(
            f"config.json has the selection {config.vision_feature_select_strategy}, and midsight knows Pixtral with "
            "full; use another model."
        )
    mistral3.validate_processor(processor, config)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Every patch through the projector."""
    return model.get_submodule(llava.PROJECTOR)(features)


FAMILY = replace(
    mistral3.FAMILY,
    name="Pixtral",
    architecture=llava.FAMILY.architecture,
    prompt=replace(mistral3.FAMILY.prompt, published=f"<s>[INST]{IMAGE_TOKEN}{{question}}[/INST]"),
    vision=replace(mistral3.FAMILY.vision, image_embeddings=image_embeddings, validate_processor=validate_processor),
)

"""The families midsight knows: architecture name to module, imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import transformers

from midsight.errors import MidsightError
from midsight.models.adapter import Adapter
from midsight.models.checkpoint import Checkpoint
from midsight.models.headers import read_json

FAMILIES = {
    "Phi4MultimodalForCausalLM": "midsight.models.phi4_multimodal",
    "MllamaForConditionalGeneration": "midsight.models.mllama",
    "Qwen2_5_VLForConditionalGeneration": "midsight.models.qwen2_5_vl",
    "Qwen2VLForConditionalGeneration": "midsight.models.qwen2_vl",
}
"""Architecture, as in config.json, to the module that holds its ADAPTER."""

KNOWN = f"midsight knows {', '.join(FAMILIES)}, and docs/adding-a-model.md says how to add another"
"""What an error about an unknown family ends with."""

LAYOUTS = {
    "phi4mm": ("midsight.models.phi4mm.folder", "open_published"),
}
"""`model_type` of folders that transformers does not load, to the function that opens them."""


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens a model folder of any layout; which it is, its config.json says. Raises MidsightError."""
    model_type = read_model_type(folder)
    if model_type in LAYOUTS:
        module, function = LAYOUTS[model_type]
        return getattr(importlib.import_module(module), function)(folder)
    if model_type not in transformers.CONFIG_MAPPING:
        raise MidsightError(
            f"{folder} has model_type {model_type!r}, which transformers {transformers.__version__} does not load "
            f"without remote code; {KNOWN}."
        )
    return importlib.import_module("midsight.models.native").open_native(folder)


def read_model_type(folder: Path) -> str:
    """`model_type` of the folder's config.json; raises MidsightError where there is none to read."""
    if not folder.is_dir():
        raise MidsightError(f"{folder} is no folder; give the folder of a downloaded model.")
    model_type = read_json(folder / "config.json").get("model_type")
    if not isinstance(model_type, str):
        raise MidsightError(f"{folder / 'config.json'} says {model_type!r} for model_type; download it again.")
    return model_type


def find_adapter(architectures: Sequence[str], source: str) -> Adapter:
    """The adapter for the first architecture that midsight knows; `source` names the model in the error."""
    for architecture in architectures:
        if architecture in FAMILIES:
            return importlib.import_module(FAMILIES[architecture]).ADAPTER
    found = ", ".join(map(str, architectures)) or "none"
    raise MidsightError(f"{source} has the architecture {found}, which is not known; {KNOWN}.")

"""The families midsight knows: architecture name to module, imported when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from midsight.errors import MidsightError
from midsight.models.adapter import Adapter

FAMILIES = {
    "Phi4MultimodalForCausalLM": "midsight.models.phi4_multimodal",
}
"""Architecture, as in config.json, to the module that holds its ADAPTER."""


def find_adapter(architectures: Sequence[str], source: str) -> Adapter:
    """The adapter for the first architecture that midsight knows; `source` names the model in the error."""
    for architecture in architectures:
        if architecture in FAMILIES:
            return importlib.import_module(FAMILIES[architecture]).ADAPTER
    found = ", ".join(architectures) or "none"
    raise MidsightError(
        f"{source} has the architecture {found}, which midsight does not know; it knows {', '.join(FAMILIES)}."
    )

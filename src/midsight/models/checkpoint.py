"""A model folder, opened: its config and headers read, its weights not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from midsight.models.adapter import Adapter

LoraMode = Literal["merged", "unmerged", "off"]
"""How the LoRA that image input needs is applied: added to the weights, beside them, or not at all."""


@dataclass(frozen=True)
class Checkpoint:
    """What every layout of model folder comes down to."""

    layout: str
    """`transformers` or `published phi4mm`."""
    adapter: Adapter
    """The family's declarations."""
    config: Any
    """transformers' config of the whole model."""
    has_lora: bool
    """Whether the family keeps a LoRA for images beside its weights."""
    load_weights: Callable[[torch.dtype, torch.device, LoraMode], Any]
    """The model with its weights, on the device and in the dtype; raises MidsightError."""
    load_tokenizer: Callable[[], Any]
    """transformers' tokenizer, from the folder's files."""
    load_image_processor: Callable[[], Any]
    """transformers' image processor, from the folder's files."""

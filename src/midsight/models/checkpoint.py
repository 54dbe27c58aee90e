"""A model folder, opened: its config and headers read, its weights not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from midsight.models.adapter import Adapter
from midsight.models.headers import Headers

LoraMode = Literal["merged", "unmerged", "off"]
"""How a LoRA that lies beside the weights is applied: added to them, computed beside them, or not at all."""

VISION_LORA, SPEECH_LORA = "vision LoRA", "speech LoRA"


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
    """Whether the LoRA that image input needs lies beside the weights."""
    headers: Headers
    """Every stored tensor that midsight looks at, by stored name."""
    account: Callable[[], None]
    """Raises MidsightError where a tensor is missing, extra or misshapen; reads headers only."""
    load_weights: Callable[[LoadChoice], Any]
    """The model with its weights; raises MidsightError."""
    load_tokenizer: Callable[[], Any]
    """transformers' tokenizer, from the folder's files; raises MidsightError."""
    load_image_processor: Callable[[], Any]
    """transformers' image processor, from the folder's files; raises MidsightError."""


@dataclass(frozen=True)
class LoadChoice:
    """How the weights come into memory."""

    dtype: torch.dtype
    """Of every weight."""
    device: torch.device
    """Where they are read to."""
    lora: LoraMode | None
    """None where no LoRA lies beside the weights."""
    unused: bool
    """Whether the modules that no image prompt uses are loaded too."""


def count_parameters(checkpoint: Checkpoint) -> dict[str, int]:
    """Stored parameters by part of the model, the LoRAs beside it among them."""
    counts: Counter[str] = Counter()
    for name, header in checkpoint.headers.items():
        counts[part_of(name, checkpoint.adapter)] += header.parameters
    return dict(counts)


def part_of(tensor: str, adapter: Adapter) -> str:
    """The part of the model that a stored tensor belongs to; other layouts than transformers' keep these paths."""
    if ".lora_" in tensor:
        return SPEECH_LORA if tensor.endswith(".speech.weight") else VISION_LORA
    for older, name in adapter.older_names.items():
        tensor = re.sub(older, name, tensor)
    paths = {
        **{path: part for part, path in adapter.unused_modules.items()},
        adapter.vision_tower: "vision encoder",
        adapter.layers: "decoder",
        adapter.final_norm: "decoder",
        adapter.token_embedding: "token embedding",
        adapter.lm_head: "language-model head",
    }
    return next((part for path, part in paths.items() if tensor.startswith(f"{path}.")), "image projection")


def left_out_parts(adapter: Adapter) -> tuple[str, ...]:
    """The parts that no image prompt uses."""
    return (*adapter.unused_modules, SPEECH_LORA)


def loaded_parameters(checkpoint: Checkpoint, lora: LoraMode | None) -> int:
    """How many parameters `load_weights` brings into memory when no unused module is asked for."""
    left_out = left_out_parts(checkpoint.adapter)
    if lora != "unmerged":
        left_out = (*left_out, VISION_LORA)
    return sum(count for part, count in count_parameters(checkpoint).items() if part not in left_out)

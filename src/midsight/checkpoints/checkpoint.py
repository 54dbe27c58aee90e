"""An opened model folder: its config and tensor headers are read, its weights are not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from midsight.checkpoints.headers import Headers
from midsight.checkpoints.load_options import LoraMode
from midsight.checkpoints.peft_folder import PeftFolder
from midsight.families.family import Family

CheckpointFormat = Literal["transformers", "published phi4mm", "in memory"]
"""How a folder stores its model: in transformers' format or in the published one; or a model without a folder."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened model folder, whatever its format."""

    format: CheckpointFormat
    """How the folder stores its model."""
    family: Family
    """The family's declarations."""
    config: Any
    """transformers' config of the whole model."""
    has_own_lora: bool
    """Whether the LoRA that image input needs is stored beside the weights."""
    headers: Headers
    """Every stored tensor that midsight uses or counts, by stored name."""
    account: Callable[[], None]
    """Raises MidsightError if a tensor is missing, extra or misshapen; reads headers only."""
    load_weights: Callable[[LoadChoice], Any]
    """Makes the model with its weights; raises MidsightError."""
    load_processor: Callable[[], Any]
    """Makes transformers' processor from the folder's files, or ProcessorParts; raises MidsightError."""
    adapter: PeftFolder | None = None
    """The adapter that is applied to the folder's model, if the user gave one."""
    notes: tuple[str, ...] = ()
    """What a user should know about the folder, one sentence each."""

    @property
    def has_lora(self) -> bool:
        """Whether a LoRA is stored beside the weights: the one for images, or an adapter's."""
        return self.has_own_lora or self.adapter is not None


@dataclass(frozen=True)
class ProcessorParts:
    """Tokenizer and image processor of a folder from which transformers makes no whole processor."""

    tokenizer: Any
    """transformers' tokenizer."""
    image_processor: Any
    """transformers' image processor."""


@dataclass(frozen=True)
class LoadChoice:
    """How the weights are loaded."""

    dtype: torch.dtype
    """The dtype of every weight in memory."""
    device: torch.device
    """Where the weights are."""
    lora: LoraMode | None
    """How the LoRA is applied; None if none is stored beside the weights."""
    unused: bool
    """Whether the modules that no image prompt uses are loaded too."""


def count_parameters(checkpoint: Checkpoint) -> dict[str, int]:
    """Number of stored parameters by part of the model, LoRAs included."""
    counts: Counter[str] = Counter()
    for name, header in checkpoint.headers.items():
        counts[part_of(name, checkpoint.family)] += header.parameters
    return dict(counts)


def part_of(tensor: str, family: Family) -> str:
    """The part of the model that a stored tensor belongs to, whatever the checkpoint's format."""
    for part, pattern in family.stored.lora_parts.items():
        if re.search(pattern, tensor):
            return part
    for older, name in family.stored.older_names.items():
        tensor = re.sub(older, name, tensor)
    modules = family.modules
    paths = {
        **{path: part for part, path in family.stored.unused_modules.items()},
        modules.vision_tower: "vision encoder",
        modules.second_vision_tower: "vision encoder",
        modules.layers: "decoder",
        modules.final_norm: "decoder",
        modules.token_embedding: "token embedding",
        modules.lm_head: "language-model head",
    }
    if not modules.vision_tower.startswith(f"{modules.decoder}."):
        paths[modules.decoder] = "decoder"  # the rest of it
    return next((part for path, part in paths.items() if tensor.startswith(f"{path}.")), "image projection")


def image_lora(family: Family) -> str | None:
    """The part of the model that is the LoRA for images; None if the family has none."""
    return next(iter(family.stored.lora_parts), None)


def left_out_parts(family: Family) -> tuple[str, ...]:
    """The parts that no image prompt uses."""
    return (*family.stored.unused_modules, *tuple(family.stored.lora_parts)[1:])


def loaded_parameters(checkpoint: Checkpoint, lora: LoraMode | None) -> int:
    """Number of parameters that `load_weights` brings into memory without the unused modules."""
    left_out = {*left_out_parts(checkpoint.family)}
    if lora != "unmerged":
        left_out.add(image_lora(checkpoint.family) or "")
    own = sum(count for part, count in count_parameters(checkpoint).items() if part not in left_out)
    adapter = checkpoint.adapter.headers.values() if checkpoint.adapter and lora == "unmerged" else ()
    return own + sum(header.parameters for header in adapter)

"""A LoRA in PEFT's format beside the weights: finding, adding and merging it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from midsight.checkpoints.headers import Headers
from midsight.checkpoints.hub import LORA_FILES
from midsight.checkpoints.reading import tensor_reader
from midsight.errors import MidsightError, ModelFileError, Option, first_line
from midsight.families.family import Family


def find_lora(folder: Path, family: Family) -> Path | None:
    """The folder of the LoRA for images; None if the folder has no LoRA, or the family needs none.

    Raises MidsightError if one of its files is missing. It raises it too if the folder has other LoRAs and not this
    one: they show that nothing was merged into the weights.
    """
    if family.stored.lora_folder is None:
        return None
    path = folder / family.stored.lora_folder
    if not path.is_dir():
        others = sorted(config.parent.name for config in folder.glob("*/adapter_config.json"))
        if others:
            raise MidsightError(
                f"{folder} has {others[0]}/ and no {family.stored.lora_folder}/, and {family.name} needs its LoRA for "
                "images; add the folder, or merge it into the weights and leave the others out."
            )
        return None
    for name in LORA_FILES:
        if not (path / name).is_file():
            raise ModelFileError(f"{path} has no {name}, and {family.name} needs its LoRA for images", path / name)
    return path


def add_lora(hf_model: Any, folder: Path, family: Family) -> None:
    """Adds the LoRA of a folder in PEFT's format and switches it on; raises MidsightError if it does not fit."""
    try:
        report = hf_model.load_adapter(str(folder), adapter_name="vision", ignore_mismatched_sizes=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise MidsightError(f"{folder} does not fit {family.name}: {first_line(error)}.") from error
    missing = [name for name in report.missing_keys if ".lora_" in name]
    misshapen = [name for name, *_ in report.mismatched_keys]
    for what, names in (
        ("has no counterpart", [*missing, *report.unexpected_keys]),
        ("has another shape than its weight and adapter_config.json ask for", misshapen),
    ):
        if names:
            raise MidsightError(f"{folder} does not fit {family.name}: the tensor {min(names)} {what}.")
    hf_model.set_adapter("vision")


def merge_lora(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A in float32, for W [rows, columns], A [rank, columns] and B [rows, rank]."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)


@torch.no_grad()
def merge_adapters(hf_model: Any, headers: Headers, lora_folder: Path) -> None:
    """Merges the LoRA `vision` into the weights and removes PEFT's layers.

    Weights and factors are read again from the files, because those in memory are rounded to the model's dtype.
    Raises MidsightError for an adapter that computes more than W + scale B A.
    """
    adapted = {name: module for name, module in hf_model.named_modules() if "vision" in getattr(module, "lora_A", ())}
    stored = {name.removeprefix("base_model.model."): name for name in headers}
    factors = {f"{name}.lora_{letter}.weight" for name in adapted for letter in "AB"}
    others = sorted({name for name in stored if ".lora_" in name} - factors)
    variants = sorted(name for name, module in adapted.items() if module.lora_variant)
    for name in (*others, *variants):
        raise MidsightError(
            f"{lora_folder} is more than a plain LoRA ({name}) and cannot be merged; load it with ",
            Option("lora", "unmerged"),
            ".",
        )
    with tensor_reader(headers) as read:
        for name, module in adapted.items():
            base = module.base_layer
            names = (f"{name}.weight", f"{name}.lora_A.weight", f"{name}.lora_B.weight")
            weight, a, b = (read(stored[each]).to(base.weight.device) for each in names)
            base.weight.copy_(merge_lora(weight, a, b, module.scaling["vision"]))
            hf_model.set_submodule(name, base)
    hf_model._hf_peft_config_loaded = False

"""The LoRA that image input needs, against its definition, computed from the folder's files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from midsight.check.check import Check
from midsight.check.full_forward import largest_error, relative_error, worst
from midsight.check.subject import Subject, record_of
from midsight.checkpoints.headers import read_json
from midsight.checkpoints.loading import LoadedModel
from midsight.checkpoints.lora import loras_off
from midsight.extraction.extract_call import extract_samples
from midsight.extraction.request import ResolvedRequest
from midsight.records import Record
from midsight.samples.sample import Sample

LORA_DIFFERS_BY = 1e-3
"""Smallest relative error between the model with and without its LoRA that passes."""
LAYERS_COMPARED = 13
"""Maximum number of linear layers that are compared with their files; of 128, it takes different kinds of layers."""
FACTOR = re.compile(r"(base_model\.model\.)?(?P<layer>.+)\.lora_A(\.vision)?\.weight")
"""The stored name of a factor A, in PEFT's format and in the published one."""


@dataclass(frozen=True)
class StoredLora:
    """The LoRA of one linear layer, as its files have it."""

    layer: str
    """Path of the layer in the model."""
    factor: str
    """Stored name of A; that of B differs in one letter."""
    scale: float
    """alpha / rank, or alpha / sqrt(rank) where the folder asks for it."""


def check_lora(subject: Subject) -> list[Check]:
    """The LoRA beside the weights, off and on; the states have to differ."""
    model = subject.model
    if model.lora != "unmerged":
        return []
    with loras_off(model.hf_model):
        without = extract_each(model, subject.without_answers, subject.samples)
    return [compare_lora(without, subject.alone)]


@torch.inference_mode()
def check_factors(subject: Subject, folder: Path) -> list[Check]:
    """Outputs of linear layers with LoRA for random input, against W x + scale B A x from the folder's files.

    Nothing is compared if the LoRA is off, or if the folder gives each layer a scale of its own.
    """
    model, lora_folder = subject.model, subject.model.family.stored.lora_folder
    if lora_folder is None or model.lora not in ("merged", "unmerged"):
        return []
    scale = folder_scale(folder, lora_folder)
    if scale is None:
        return []
    files = tensor_files([folder, folder / lora_folder])
    stored = [StoredLora(match["layer"], name, scale) for name in sorted(files) if (match := FACTOR.fullmatch(name))]
    chosen = {stored[i * len(stored) // LAYERS_COMPARED] for i in range(LAYERS_COMPARED)}
    errors = [output_error(model, one, files) for one in chosen]
    return [Check("layers with LoRA and W x + alpha / rank B A x from the files", worst(errors), subject.limit)]


def output_error(model: LoadedModel, stored: StoredLora, files: Mapping[str, Path]) -> float:
    """Relative error of one layer's output against its definition, computed in float64."""
    base = next(name for name in (f"{stored.layer}.weight", f"{stored.layer}.base_layer.weight") if name in files)
    weight, a = read_tensor(files, base), read_tensor(files, stored.factor)
    b = read_tensor(files, stored.factor.replace(".lora_A.", ".lora_B."))
    x = torch.randn((4, weight.shape[1]), generator=torch.Generator().manual_seed(0))
    x = x.to(model.dtype)
    expected = x.double() @ weight.T + stored.scale * (x.double() @ a.T @ b.T)
    output = model.hf_model.get_submodule(stored.layer)(x.to(model.device))
    return relative_error(output.cpu().double().numpy(), expected.numpy())


def tensor_files(folders: Sequence[Path]) -> dict[str, Path]:
    """The file of every stored tensor in some folders."""
    files: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        with safe_open(path, framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), path)
    return files


def read_tensor(files: Mapping[str, Path], name: str) -> Tensor:
    """One stored tensor, float64."""
    with safe_open(files[name], framework="pt") as opened:
        return opened.get_tensor(name).double()


def folder_scale(folder: Path, lora_folder: str) -> float | None:
    """The scale of the LoRA as the folder's files have it; None if they give each layer its own."""
    path = folder / lora_folder / "adapter_config.json"
    lora = read_json(path) if path.is_file() else read_json(folder / "config.json").get("vision_lora") or {}
    if "r" not in lora or lora.get("alpha_pattern") or lora.get("rank_pattern"):
        return None
    return lora["lora_alpha"] / (math.sqrt(lora["r"]) if lora.get("use_rslora") else lora["r"])


def extract_each(model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample]) -> list[Record]:
    """The record of each sample by itself; raises SampleError."""
    return [record_of(extract_samples(model, request, [sample])[0]) for sample in samples]


def compare_lora(without: Sequence[Record], with_lora: Sequence[Record]) -> Check:
    """The vectors of the same samples without and with the LoRA; they have to differ."""
    smallest = float(np.min([largest_error(*pair) for pair in zip(without, with_lora, strict=True)]))
    return Check("LoRA off and on", smallest, LORA_DIFFERS_BY, must_differ=True)

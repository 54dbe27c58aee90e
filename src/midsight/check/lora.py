"""The LoRA that image input needs, and an adapter, against their definition, computed from the files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from midsight.check.check import Check
from midsight.check.full_forward import largest_error, relative_error, worst
from midsight.check.subject import Subject, record_of
from midsight.checkpoints.adapter import FoundModel
from midsight.checkpoints.headers import read_json
from midsight.checkpoints.loading import LoadedModel
from midsight.checkpoints.lora import loras_off
from midsight.checkpoints.native import stored_names
from midsight.checkpoints.peft_fit import native_name
from midsight.extraction.extract_call import extract_samples
from midsight.extraction.request import ResolvedRequest
from midsight.families.family import Family
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
    files: Mapping[str, Path]
    """The file of every tensor that is stored with it."""


def check_lora(subject: Subject) -> list[Check]:
    """The LoRA beside the weights, off and on; the states have to differ."""
    model = subject.model
    if model.lora != "unmerged":
        return []
    with loras_off(model.hf_model):
        without = extract_each(model, subject.without_answers, subject.samples)
    return [compare_lora(without, subject.alone)]


@torch.inference_mode()
def check_factors(subject: Subject, found: FoundModel) -> list[Check]:
    """Outputs of linear layers with LoRA for random input, against W x + scale B A x from the files.

    Nothing is compared if the LoRA is off, or if its files give each layer a scale of its own.
    """
    model = subject.model
    if model.lora not in ("merged", "unmerged"):
        return []
    base = tensor_files([found.folder.path])
    names = stored_names(base, model.family)
    loras = [stored_loras(settings, files, model) for settings, files in lora_sources(found, model.family)]
    if None in loras:
        return []
    by_layer: dict[str, list[StoredLora]] = {}
    for one in (one for stored in loras for one in stored or ()):
        by_layer.setdefault(one.layer, []).append(one)
    layers = sorted(by_layer)
    chosen = {layers[i * len(layers) // LAYERS_COMPARED] for i in range(LAYERS_COMPARED)} if layers else set()
    errors = [output_error(model, layer, by_layer[layer], base, names) for layer in sorted(chosen)]
    if not errors:
        return []
    return [Check("layers with LoRA and W x + alpha / rank B A x from the files", worst(errors), subject.limit)]


def lora_sources(found: FoundModel, family: Family) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Path]]]:
    """Settings and files of the LoRA for images and of the user's adapter, those that there are."""
    folder, inside = found.folder.path, family.stored.lora_folder
    if inside is not None and (folder / inside).is_dir():
        yield read_json(folder / inside / "adapter_config.json"), tensor_files([folder / inside])
    elif inside is not None:
        yield read_json(folder / "config.json").get("vision_lora") or {}, tensor_files([folder])
    if found.adapter is not None:
        yield found.adapter.config, tensor_files([found.adapter.path])


def stored_loras(settings: Mapping[str, Any], files: Mapping[str, Path], model: LoadedModel) -> list[StoredLora] | None:
    """The LoRAs of some files; None if they give each layer a scale of its own."""
    factors = [(match["layer"], name) for name in sorted(files) if (match := FACTOR.fullmatch(name))]
    scale = scale_of(settings)
    if factors and scale is None:
        return None
    known = {path for path, _ in model.hf_model.named_modules()}
    named = [(native_name(layer, model.family, known), factor) for layer, factor in factors]
    return [StoredLora(layer, factor, scale or 0.0, files) for layer, factor in named if layer in known]


def output_error(
    model: LoadedModel,
    layer: str,
    loras: Sequence[StoredLora],
    base: Mapping[str, Path],
    names: Mapping[str, str],
) -> float:
    """Relative error of one layer's output against its definition, computed in float64.

    `base` are the files of the model's own tensors, and `names` says how a tensor of the model is called there.
    """
    weight = read_tensor(base, names.get(f"{layer}.weight", f"{layer}.base_layer.weight"))
    x = torch.randn((4, weight.shape[1]), generator=torch.Generator().manual_seed(0))
    x = x.to(model.dtype)
    expected = x.double() @ weight.T
    for lora in loras:
        a, b = (read_tensor(lora.files, lora.factor.replace(".lora_A.", f".lora_{one}.")) for one in "AB")
        expected += lora.scale * (x.double() @ a.T @ b.T)
    bias = names.get(f"{layer}.bias")
    if bias is not None:
        expected += read_tensor(base, bias)
    output = model.hf_model.get_submodule(layer)(x.to(model.device))
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


def scale_of(settings: Mapping[str, Any]) -> float | None:
    """The scale of a LoRA as its settings have it; None if they have none, one for each layer, or trained biases."""
    of_its_own = any(settings.get(name) for name in ("alpha_pattern", "rank_pattern"))
    if "r" not in settings or of_its_own or settings.get("bias", "none") != "none":
        return None
    rank = settings["r"]
    return settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def extract_each(model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample]) -> list[Record]:
    """The record of each sample by itself; raises SampleError."""
    return [record_of(extract_samples(model, request, [sample])[0]) for sample in samples]


def compare_lora(without: Sequence[Record], with_lora: Sequence[Record]) -> Check:
    """The vectors of the same samples without and with the LoRA; they have to differ."""
    smallest = float(np.min([largest_error(*pair) for pair in zip(without, with_lora, strict=True)]))
    return Check("LoRA off and on", smallest, LORA_DIFFERS_BY, must_differ=True)

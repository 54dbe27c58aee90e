"""A LoRA in PEFT's format on the layers of a model: which tensor belongs to which layer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from midsight.checkpoints.lora import Lora, LoraPair
from midsight.checkpoints.patterns import require_quick
from midsight.checkpoints.peft_folder import CONFIG, PeftFolder, more_than_lora
from midsight.errors import MidsightError, quoted
from midsight.families.family import Family

PREFIX = "base_model.model."
"""How PEFT's names of tensors start."""


def fit_lora(adapter: PeftFolder, hf_model: nn.Module, family: Family) -> Lora:
    """The LoRA on the layers of a model, which may be on the meta device.

    Names of older transformers are translated; tensors of modules that were not loaded are left out. Raises
    MidsightError for a tensor that has no counterpart, or another shape than its weight and the config ask for.
    """
    modules = dict(hf_model.named_modules())
    require_quick(adapter.path / CONFIG, patterns_of(adapter.config), {*modules, *map(trained_path, adapter.headers)})
    parameters = dict(hf_model.named_parameters(remove_duplicate=False))
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for stored in adapter.headers:
        name = native_name(stored, family, {*modules, *parameters})
        if is_unread(name, family, modules):
            continue
        if ".lora_embedding_" in name:
            raise more_than_lora(adapter.path, f"a LoRA on the embedding {name.partition('.lora_embedding_')[0]}")
        found = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if found and isinstance(modules.get(found[1]), nn.Linear):
            factors.setdefault(found[1], {})[found[2]] = stored
        elif name in parameters and tuple(parameters[name].shape) == adapter.headers[stored].shape:
            replaced[name] = stored
        elif name in parameters:
            raise no_fit(adapter, family, stored, f"has another shape than {list(parameters[name].shape)}")
        elif found and found[1] in modules:
            raise more_than_lora(adapter.path, f"a LoRA on the {type(modules[found[1]]).__name__} {found[1]}")
        elif not found and name.partition(".lora_")[0] in modules:
            raise more_than_lora(adapter.path, stored)
        else:
            raise no_fit(adapter, family, stored, "has no counterpart")
    # a layer that is stored as a whole has no factors, even if it is a target
    targeted = {path for path in targets(adapter.config, modules) if f"{path}.weight" not in replaced}
    for path in sorted({*factors, *targeted}):
        for letter in "AB":
            if letter not in factors.get(path, ()):
                raise no_fit(adapter, family, f"{path}.lora_{letter}.weight", "is missing")
    pairs = {path: make_pair(adapter, path, modules[path], found, family) for path, found in factors.items()}
    return Lora(adapter.headers, pairs, replaced)


def patterns_of(config: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions of a config."""
    if isinstance(config.get("target_modules"), str):
        yield config["target_modules"]
    for name in ("rank_pattern", "alpha_pattern"):
        yield from config.get(name) or {}


def trained_path(stored: str) -> str:
    """Path of the layer that one of PEFT's tensors belongs to, as it was called in training."""
    return stored.removeprefix(PREFIX).partition(".lora_")[0]


def native_name(stored: str, family: Family, known: set[str]) -> str:
    """The name in transformers' class of one of PEFT's tensors."""
    name = stored.removeprefix(PREFIX).replace(".base_layer.", ".")
    if name in known or name.partition(".lora_")[0] in known:
        return name
    for older, newer in family.stored.older_names.items():
        name = re.sub(older, newer, name)
    return name


def is_unread(name: str, family: Family, modules: Mapping[str, nn.Module]) -> bool:
    """Whether this belongs to a module that no image prompt uses and that was not loaded."""
    paths = family.stored.unused_modules.values()
    return any(name.startswith(f"{path}.") and isinstance(modules.get(path), nn.Identity) for path in paths)


def targets(config: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """The linear layers that the config names; none if it names them by something else than their names."""
    named = config.get("target_modules")
    if named == "all-linear" or any(config.get(name) for name in ("layers_to_transform", "exclude_modules")):
        return
    for path, module in modules.items():
        if isinstance(module, nn.Linear) and is_target(path, named):
            yield path


def is_target(path: str, named: Any) -> bool:
    """Whether PEFT's `target_modules` names a layer: by a regular expression, or by the ends of names."""
    if isinstance(named, str):
        try:
            return named == "all-linear" or re.fullmatch(named, path) is not None
        except re.error:
            return False
    ends = named if isinstance(named, list) else []
    return any(path == end or path.endswith(f".{end}") for end in ends)


def make_pair(adapter: PeftFolder, path: str, layer: Any, found: Mapping[str, str], family: Family) -> LoraPair:
    """The factors of one layer; raises MidsightError if they do not fit it."""
    config = adapter.config
    trained = trained_path(found["A"])
    named = config.get("target_modules")
    if named and not is_target(trained, named) and not is_target(path, named):
        raise no_fit(adapter, family, found["A"], "is not one that adapter_config.json targets")
    rank = by_pattern(config.get("rank_pattern"), trained, config["r"])
    alpha = by_pattern(config.get("alpha_pattern"), trained, config["lora_alpha"])
    rows, columns = layer.out_features, layer.in_features
    for name, shape in ((found["A"], (rank, columns)), (found["B"], (rows, rank))):
        if adapter.headers[name].shape != shape:
            raise no_fit(adapter, family, name, "has another shape than its weight and adapter_config.json ask for")
    return LoraPair(found["A"], found["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a layer's path, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error:
            continue
    return default


def no_fit(adapter: PeftFolder, family: Family, tensor: str, what: str) -> MidsightError:
    """The error for a tensor that the model has no place for."""
    return MidsightError(f"{adapter.path} does not fit {family.name}: the tensor {quoted(tensor)} {what}.")

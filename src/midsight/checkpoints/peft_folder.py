"""A LoRA in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from midsight.checkpoints.bounds import validate_files
from midsight.checkpoints.headers import Headers, read_header, read_json
from midsight.checkpoints.hub import require_only_lora
from midsight.checkpoints.lora import Lora, LoraPair
from midsight.checkpoints.patterns import require_quick
from midsight.errors import MidsightError, ModelFileError, quoted
from midsight.families.family import Family

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
"""What older versions of PEFT wrote."""
PREFIX = "base_model.model."
"""How PEFT's names of tensors start."""
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base model's weights as they are."""
MORE_THAN_LORA = (
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "trainable_token_indices",
    "target_parameters",
    "megatron_config",
    "ensure_weight_tying",
)
"""Settings with which PEFT computes more than W x + scale B A x."""
KNOWN = frozenset(
    (
        *MORE_THAN_LORA,
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config"),
        *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
        *("layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core"),
        *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
        *("runtime_config", "target_modules", "task_type", "use_rslora", "velora_config"),
    )
)
"""All settings of PEFT's LoRA."""


@dataclass(frozen=True)
class PeftFolder:
    """Config and tensor headers of a LoRA's folder."""

    path: Path
    """The folder."""
    config: Mapping[str, Any]
    """Its adapter_config.json, validated."""
    headers: Headers
    """Its tensors, by stored name."""


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
    return path


def read_peft_folder(path: Path) -> PeftFolder:
    """Reads config and tensor headers; raises MidsightError if a file is missing, damaged, or not a plain LoRA."""
    validate_files(path)
    require_only_lora(path, (file.name for file in path.iterdir()))
    if (path / PICKLE).exists() and not (path / WEIGHTS).exists():
        raise MidsightError(
            f"{path} stores its adapter in {PICKLE}, a pickle, which midsight does not open; load it with PEFT and "
            f"save it with save_pretrained, which writes {WEIGHTS}."
        )
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise ModelFileError(f"{path} has no {name}, so its LoRA cannot be read", path / name)
    config = read_json(path / CONFIG)
    validate_config(path, config)
    return PeftFolder(path, config, read_header(path / WEIGHTS))


def validate_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises MidsightError unless the config describes a plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise more_than_lora(path, f"peft_type {quoted(repr(kind))}")
    for name in MORE_THAN_LORA:
        if config.get(name):
            raise more_than_lora(path, f"{name} {quoted(repr(config[name]))}")
    for name in sorted({*config} - KNOWN):
        if config[name]:
            raise MidsightError(
                f"{path / CONFIG} has the setting {quoted(name)}, which midsight does not know; remove it if it does "
                "not change the numbers, or load the adapter with PEFT and give the model to midsight.wrap."
            )
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        start = quoted(repr(config["init_lora_weights"]))
        raise more_than_lora(path, f"init_lora_weights {start}, which changes the base model")
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    if not isinstance(ranks, dict) or not isinstance(alphas, dict):
        raise ModelFileError(
            f"{path / CONFIG} has a rank_pattern or alpha_pattern that is not an object", path / CONFIG
        )
    for name, value in [("r", config.get("r")), *ranks.items()]:
        if type(value) is not int or value < 1:
            raise not_usable(path, name, value, "a rank")
    for name, value in [("lora_alpha", config.get("lora_alpha")), *alphas.items()]:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise not_usable(path, name, value, "a number")


def not_usable(path: Path, name: str, value: Any, kind: str) -> ModelFileError:
    """The error for a setting whose value is not of its kind."""
    said = f"{path / CONFIG} says {quoted(repr(value))} for {quoted(name)}"
    return ModelFileError(f"{said}, which is not {kind}", path / CONFIG)


def more_than_lora(path: Path, what: str) -> MidsightError:
    """The error for an adapter that computes something else than a LoRA."""
    return MidsightError(
        f"{path} is more than a plain LoRA ({what}); load it with PEFT and give the model to midsight.wrap."
    )


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

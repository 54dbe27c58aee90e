"""A LoRA in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midsight.checkpoints.bounds import validate_files
from midsight.checkpoints.headers import Headers, read_header, read_json
from midsight.checkpoints.hub import require_only_lora
from midsight.errors import MidsightError, ModelFileError, quoted

if TYPE_CHECKING:
    from midsight.families.family import Family

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
"""What older versions of PEFT wrote."""
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

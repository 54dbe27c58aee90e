"""A model folder in transformers' own layout, its image LoRA beside the weights in PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from midsight.errors import MidsightError
from midsight.models.adapter import Adapter
from midsight.models.catalogue import find_adapter
from midsight.models.checkpoint import Checkpoint, LoraMode

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def open_native(folder: Path) -> Checkpoint:
    """Reads the folder's config; raises MidsightError where it is no model that transformers can load."""
    if not list(folder.glob("*.safetensors")):
        raise MidsightError(f"{folder} has no safetensors weights; midsight loads no other kind of weights.")
    config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
    adapter = find_adapter(config.architectures or [], str(folder))

    def load(dtype: torch.dtype, device: torch.device, lora: LoraMode) -> Any:
        hf_model = load_weights(folder, adapter, dtype)
        if adapter.lora_folder and lora != "off":
            add_lora(hf_model, folder / adapter.lora_folder, adapter)
        hf_model.to(device)
        if lora == "merged":
            merge_adapters(hf_model)
        return hf_model

    return Checkpoint(
        layout="transformers",
        adapter=adapter,
        config=config,
        has_lora=adapter.lora_folder is not None,
        load_weights=load,
        load_tokenizer=lambda: transformers.AutoTokenizer.from_pretrained(folder, **LOCAL),
        load_image_processor=lambda: transformers.AutoImageProcessor.from_pretrained(folder, **LOCAL),
    )


def load_weights(folder: Path, adapter: Adapter, dtype: torch.dtype) -> Any:
    """The model with the folder's tensors in place; raises MidsightError where one is missing, extra or misshapen."""
    architecture = getattr(transformers, adapter.architecture)
    hf_model, report = architecture.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            names = sorted(map(str, report[kind]))
            raise MidsightError(
                f"{folder} has {len(names)} {kind.removesuffix('_keys')} tensors, {names[0]} the first; "
                f"it is no whole {adapter.architecture}, download it again."
            )
    return hf_model


def add_lora(hf_model: Any, folder: Path, adapter: Adapter) -> None:
    """Loads the LoRA of a folder in PEFT's layout and switches it on; raises MidsightError where it is not whole."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise MidsightError(
                f"{folder} has no {name}, and {adapter.family} needs its LoRA for images; "
                "add the file, or load with lora='off' if it is merged into the weights."
            )
    report = hf_model.load_adapter(str(folder), adapter_name="vision")
    missing = sorted(name for name in report.missing_keys if ".lora_" in name)
    if missing or report.unexpected_keys:
        name = (missing or sorted(report.unexpected_keys))[0]
        raise MidsightError(f"{folder} does not fit {adapter.family}: the tensor {name} has no counterpart.")
    hf_model.set_adapter("vision")


def merge_lora(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A in float32, for W [rows, columns], A [rank, columns] and B [rows, rank]."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)


def merge_adapters(hf_model: Any) -> None:
    """Merges the LoRA `vision` into the weights, rounding each once, and takes PEFT's layers out again."""
    adapted = {name: module for name, module in hf_model.named_modules() if "vision" in getattr(module, "lora_A", ())}
    for name, module in adapted.items():
        base = module.base_layer
        a, b = module.lora_A["vision"].weight, module.lora_B["vision"].weight
        with torch.no_grad():
            base.weight.copy_(merge_lora(base.weight, a, b, module.scaling["vision"]))
        hf_model.set_submodule(name, base)
    hf_model._hf_peft_config_loaded = False

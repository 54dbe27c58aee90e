"""A model folder in transformers' own layout, its image LoRA beside the weights in PEFT's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from midsight.errors import MidsightError, first_line
from midsight.models.adapter import Adapter
from midsight.models.catalogue import find_adapter
from midsight.models.checkpoint import Checkpoint, LoadChoice
from midsight.models.headers import Headers, read_header, read_headers, read_json
from midsight.models.hub import LORA_FILES
from midsight.models.reading import tensor_reader

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def open_native(folder: Path) -> Checkpoint:
    """Reads the folder's config and headers; raises MidsightError where it is no model that transformers can load."""
    refuse_what_transformers_adds(folder)
    headers = read_headers(folder)
    adapter = find_adapter(read_architectures(folder), str(folder))
    lora_folder = find_lora(folder, adapter)
    if lora_folder is not None:
        headers |= read_header(lora_folder / "adapter_model.safetensors")

    def account() -> None:
        on_meta = LoadChoice(torch.bfloat16, torch.device("meta"), "unmerged" if lora_folder else None, unused=True)
        load(on_meta)

    def load(choice: LoadChoice) -> Any:
        hf_model = load_weights(folder, adapter, choice)
        if lora_folder is not None and choice.lora != "off":
            add_lora(hf_model, lora_folder, adapter)
            if choice.lora == "merged":
                merge_adapters(hf_model, headers, lora_folder)
        return hf_model

    def from_pretrained(kind: Any, file: str, *others: str) -> Any:
        for name in (file, *others):
            read_json(folder / name)
        try:
            return kind.from_pretrained(folder, **LOCAL)
        except Exception as error:  # the libraries behind it raise many types on damaged files
            raise MidsightError(f"{folder / file} is not usable ({first_line(error)}); download it again.") from error

    return Checkpoint(
        layout="transformers",
        adapter=adapter,
        config=from_pretrained(transformers.AutoConfig, "config.json"),
        has_lora=lora_folder is not None,
        headers=headers,
        account=account,
        load_weights=load,
        load_tokenizer=lambda: from_pretrained(transformers.AutoTokenizer, "tokenizer.json", "tokenizer_config.json"),
        load_image_processor=lambda: from_pretrained(transformers.AutoImageProcessor, processor_file(folder)),
    )


def refuse_what_transformers_adds(folder: Path) -> None:
    """Raises MidsightError for what makes transformers load other weights than the folder's, or not as they are."""
    if (folder / "adapter_config.json").exists():
        raise MidsightError(
            f"{folder} has adapter_config.json beside the model's config, and transformers would load that adapter "
            "and its base model; give the model's own folder, or merge the adapter."
        )
    if read_json(folder / "config.json").get("quantization_config") is not None:
        raise MidsightError(
            f"{folder / 'config.json'} has a quantization_config; load it with transformers and use midsight.wrap."
        )


def read_architectures(folder: Path) -> list[str]:
    """`architectures` of the folder's config.json."""
    architectures = read_json(folder / "config.json").get("architectures")
    return architectures if isinstance(architectures, list) else []


def processor_file(folder: Path) -> str:
    """The file with the image processor's settings; newer transformers write them into the whole processor's."""
    names = ("preprocessor_config.json", "processor_config.json")
    return next((name for name in names if (folder / name).is_file()), names[0])


def find_lora(folder: Path, adapter: Adapter) -> Path | None:
    """The folder of the LoRA for images; None where the weights are the model as it stands.

    Raises MidsightError where it is not whole, or is missing beside the speech LoRA, which shows that
    nothing was merged.
    """
    if adapter.lora_folder is None:
        return None
    path = folder / adapter.lora_folder
    if not path.is_dir():
        others = sorted(config.parent.name for config in folder.glob("*/adapter_config.json"))
        if others:
            raise MidsightError(
                f"{folder} has {others[0]}/ and no {adapter.lora_folder}/, and {adapter.family} needs its LoRA for "
                "images; add the folder, or merge it into the weights and leave the others out."
            )
        return None
    for name in LORA_FILES:
        if not (path / name).is_file():
            raise MidsightError(
                f"{path} has no {name}, and {adapter.family} needs its LoRA for images; download it again."
            )
    return path


def without_modules(architecture: type[nn.Module], paths: Sequence[str]) -> Any:
    """The class with nothing at the module paths, so that their tensors are never read."""

    def init(self: Any, config: Any) -> None:
        architecture.__init__(self, config)
        for path in paths:
            self.set_submodule(path, nn.Identity())

    # of transformers' own module: for code from elsewhere it does not rename the tensors of older checkpoints
    members = {"__init__": init, "__module__": architecture.__module__}
    return type(architecture.__name__, (architecture,), members)


def load_weights(folder: Path, adapter: Adapter, choice: LoadChoice) -> Any:
    """The model with the folder's tensors in place; raises MidsightError where one is missing, extra or misshapen."""
    unread = () if choice.unused else tuple(adapter.unused_modules.values())
    architecture = without_modules(getattr(transformers, adapter.architecture), unread)
    try:
        hf_model, report = architecture.from_pretrained(
            folder,
            dtype=choice.dtype,
            device_map={"": choice.device},
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise MidsightError(f"{folder} cannot be loaded ({first_line(error)}); download it again.") from error
    extra = [name for name in report["unexpected_keys"] if not name.startswith(tuple(f"{path}." for path in unread))]
    for kind, found in (
        ("missing", report["missing_keys"]),
        ("extra", extra),
        ("misshapen", [name for name, *_ in report["mismatched_keys"]]),
    ):
        if found:
            raise MidsightError(
                f"{folder} has {len(found)} {kind} tensors, {sorted(found)[0]} the first; "
                f"it is no whole {adapter.architecture}, download it again."
            )
    return hf_model


def add_lora(hf_model: Any, folder: Path, adapter: Adapter) -> None:
    """Loads the LoRA of a folder in PEFT's layout and switches it on; raises MidsightError where it does not fit."""
    try:
        report = hf_model.load_adapter(str(folder), adapter_name="vision", ignore_mismatched_sizes=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise MidsightError(f"{folder} does not fit {adapter.family}: {first_line(error)}.") from error
    missing = [name for name in report.missing_keys if ".lora_" in name]
    misshapen = [name for name, *_ in report.mismatched_keys]
    for what, names in (
        ("has no counterpart", [*missing, *report.unexpected_keys]),
        ("has another shape than its weight and adapter_config.json ask for", misshapen),
    ):
        if names:
            raise MidsightError(f"{folder} does not fit {adapter.family}: the tensor {min(names)} {what}.")
    hf_model.set_adapter("vision")


def merge_lora(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A in float32, for W [rows, columns], A [rank, columns] and B [rows, rank]."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)


@torch.no_grad()
def merge_adapters(hf_model: Any, headers: Headers, lora_folder: Path) -> None:
    """Merges the LoRA `vision` into the weights and takes PEFT's layers out again.

    What is merged is read from the files once more: in memory it is rounded to the model's dtype already.
    Raises MidsightError for an adapter that is more than W + scale B A.
    """
    adapted = {name: module for name, module in hf_model.named_modules() if "vision" in getattr(module, "lora_A", ())}
    stored = {name.removeprefix("base_model.model."): name for name in headers}
    factors = {f"{name}.lora_{letter}.weight" for name in adapted for letter in "AB"}
    others = sorted({name for name in stored if ".lora_" in name} - factors)
    variants = sorted(name for name, module in adapted.items() if module.lora_variant)
    for name in (*others, *variants):
        raise MidsightError(
            f"{lora_folder} is no plain LoRA ({name} is more) and cannot be merged; load it with --lora unmerged."
        )
    with tensor_reader(headers) as read:
        for name, module in adapted.items():
            base = module.base_layer
            names = (f"{name}.weight", f"{name}.lora_A.weight", f"{name}.lora_B.weight")
            weight, a, b = (read(stored[each]).to(base.weight.device) for each in names)
            base.weight.copy_(merge_lora(weight, a, b, module.scaling["vision"]))
            hf_model.set_submodule(name, base)
    hf_model._hf_peft_config_loaded = False

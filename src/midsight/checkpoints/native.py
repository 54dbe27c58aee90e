"""A model folder in transformers' own format; the LoRA for images, if any, is beside the weights in PEFT's format."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from midsight.checkpoints.bounds import validate_sizes
from midsight.checkpoints.checkpoint import Checkpoint, LoadChoice, ProcessorParts
from midsight.checkpoints.class_parts import without_modules
from midsight.checkpoints.headers import Headers, read_headers, read_json
from midsight.checkpoints.hub import read_architectures
from midsight.checkpoints.lora import apply_loras
from midsight.checkpoints.peft_folder import find_lora, fit_lora, read_peft_folder
from midsight.checkpoints.reading import tensor_reader
from midsight.errors import MidsightError, ModelFileError, Option, first_line
from midsight.families.catalogue import find_family
from midsight.families.family import Family

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments that keep transformers away from the network and from a folder's Python files."""


def open_native(folder: Path) -> Checkpoint:
    """Reads the folder's config and headers; raises MidsightError if it is not a model that midsight can load."""
    family = find_family(read_architectures(folder), str(folder))
    validate_native_folder(folder)
    headers = read_headers(folder)
    validate_sizes(read_json(folder / "config.json"), headers, folder / "config.json")
    lora_folder = find_lora(folder, family)
    adapters = [read_peft_folder(lora_folder)] if lora_folder else []

    # fine-tuning for images may remove the modules that no image prompt uses
    has_unused = any(name.startswith(f"{path}.") for name in headers for path in family.stored.unused_modules.values())

    def account() -> None:
        on_meta = LoadChoice(torch.bfloat16, torch.device("meta"), None, unused=has_unused)
        hf_model = load_weights(folder, family, on_meta)
        for adapter in adapters:
            fit_lora(adapter, hf_model, family)

    def load(choice: LoadChoice) -> Any:
        if choice.unused and family.stored.unused_modules and not has_unused:
            raise MidsightError(f"{folder} has no audio tower; leave ", Option("audio"), " out.")
        account()  # before memory is taken, and for parts that are not loaded
        hf_model = load_weights(folder, family, choice)
        if choice.lora in ("merged", "unmerged"):
            loras = [fit_lora(adapter, hf_model, family) for adapter in adapters]
            with tensor_reader(headers) as read:
                stored = stored_names(headers, family)
                apply_loras(hf_model, loras, merged=choice.lora == "merged", read_base=lambda name: read(stored[name]))
        return hf_model

    return Checkpoint(
        format="transformers",
        family=family,
        config=from_pretrained(transformers.AutoConfig, folder, "config.json"),
        has_lora=bool(adapters),
        headers={**headers, **{name: header for adapter in adapters for name, header in adapter.headers.items()}},
        account=account,
        load_weights=load,
        load_processor=lambda: load_processor(folder),
    )


def stored_names(headers: Headers, family: Family) -> dict[str, str]:
    """From the name in transformers' class to the stored name of every tensor."""
    names: dict[str, str] = {}
    for stored in headers:
        name = stored
        for older, newer in family.stored.older_names.items():
            name = re.sub(older, newer, name)
        names |= {stored: stored, name: stored}
    return names


def from_pretrained(kind: Any, folder: Path, file: str) -> Any:
    """The object that an Auto class of transformers makes from the folder; raises MidsightError if it makes none.

    `file` is the file that the error names.
    """
    read_json(folder / file)
    try:
        return kind.from_pretrained(folder, **LOCAL)
    except Exception as error:  # the libraries that it uses raise many types on damaged files
        raise ModelFileError(f"{folder / file} is not usable ({first_line(error)})", folder / file) from error


def load_processor(folder: Path) -> Any:
    """Transformers' processor of the folder, or ProcessorParts if transformers cannot make a whole processor."""
    for name in ("tokenizer.json", "tokenizer_config.json", processor_file(folder)):
        read_json(folder / name)
    with suppress(Exception):  # then the parts are loaded below, or their errors say what is wrong
        processor: Any = transformers.AutoProcessor.from_pretrained(folder, **LOCAL)
        if hasattr(processor, "tokenizer") and hasattr(processor, "image_processor"):
            return processor
    tokenizer = from_pretrained(transformers.AutoTokenizer, folder, "tokenizer.json")
    return ProcessorParts(tokenizer, from_pretrained(transformers.AutoImageProcessor, folder, processor_file(folder)))


def validate_native_folder(folder: Path) -> None:
    """Raises MidsightError if transformers would load other weights than the folder's, or would quantise them."""
    if (folder / "adapter_config.json").exists():
        raise MidsightError(
            f"{folder} has adapter_config.json next to the model's config, and transformers would load that adapter "
            "and its base model; give the model's own folder, or merge the adapter."
        )
    if read_json(folder / "config.json").get("quantization_config") is not None:
        raise MidsightError(
            f"{folder / 'config.json'} has a quantization_config; load it with transformers and use midsight.wrap."
        )


def processor_file(folder: Path) -> str:
    """Name of the file with the image processor's settings; newer transformers write it for the whole processor."""
    names = ("preprocessor_config.json", "processor_config.json")
    return next((name for name in names if (folder / name).is_file()), names[0])


def load_weights(folder: Path, family: Family, choice: LoadChoice) -> Any:
    """The model with the folder's weights; raises MidsightError if a tensor is missing, extra or misshapen."""
    unread = () if choice.unused else tuple(family.stored.unused_modules.values())
    architecture = without_modules(getattr(transformers, family.architecture), unread)
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
    except Exception as error:  # transformers raises many types for wrong values in config.json
        raise ModelFileError(f"{folder} cannot be loaded ({first_line(error)})") from error
    unread_names = tuple(f"{path}." for path in unread)
    extra = [name for name in report["unexpected_keys"] if not name.startswith(unread_names)]
    for kind, found in (
        ("missing", report["missing_keys"]),
        ("extra", extra),
        ("misshapen", [name for name, *_ in report["mismatched_keys"]]),
    ):
        if found:
            raise ModelFileError(
                f"{folder} has {len(found)} {kind} tensors, the first is {sorted(found)[0]}, so it is not a complete "
                f"{family.architecture}"
            )
    return hf_model

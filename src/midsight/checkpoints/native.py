"""A model folder in transformers' own format; the LoRA for images, if any, is beside the weights in PEFT's format."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from midsight.checkpoints.bounds import validate_sizes
from midsight.checkpoints.checkpoint import Checkpoint, LoadChoice, ProcessorParts
from midsight.checkpoints.class_parts import without_modules
from midsight.checkpoints.headers import how_to_wrap, read_headers, read_json
from midsight.checkpoints.hub import read_architectures
from midsight.checkpoints.lora import apply_loras
from midsight.checkpoints.peft_fit import fit_lora
from midsight.checkpoints.peft_folder import PeftFolder, find_lora, read_peft_folder
from midsight.checkpoints.processor_files import processor_file, processor_folder, tokenizer_file
from midsight.checkpoints.reading import tensor_reader
from midsight.checkpoints.tokenizer_rules import validate_rules
from midsight.errors import MidsightError, ModelFileError, Option, counted, first_line
from midsight.families.catalogue import find_family
from midsight.families.family import Family, require_packages
from midsight.families.family_file import FamilyFile, require_architecture, require_proved_for

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments that keep transformers away from the network and from a folder's Python files."""


def open_native(folder: Path, adapter: PeftFolder | None = None, family_file: FamilyFile | None = None) -> Checkpoint:
    """Reads the folder's config and headers; raises MidsightError if it is not a model that midsight can load.

    `adapter` is applied in addition to the LoRA for images that the folder may have; `family_file` declares the family
    in place of the catalogue.
    """
    architectures = read_architectures(folder)
    if family_file is None:
        family = find_family(architectures, read_json(folder / "config.json"), str(folder))
    else:
        require_architecture(family_file, architectures, str(folder))
        family = family_file.family
    require_packages(family)
    validate_native_folder(folder, family, adapter)
    headers = read_headers(folder)
    validate_sizes(read_json(folder / "config.json"), headers, folder / "config.json")
    lora_folder = find_lora(folder, family)
    own = [read_peft_folder(lora_folder)] if lora_folder else []
    adapters = [*own, adapter] if adapter else own
    processor_at, processor_notes = processor_folder(folder, adapter)
    config = from_pretrained(transformers.AutoConfig, folder, "config.json")
    family.validate_config(config)
    if family_file is not None:
        require_proved_for(family_file, config, str(folder))

    # fine-tuning for images may remove the modules that no image prompt uses
    has_unused = any(name.startswith(f"{path}.") for name in headers for path in family.stored.unused_modules.values())

    def account() -> None:
        on_meta = LoadChoice(torch.bfloat16, torch.device("meta"), None, unused=has_unused)
        hf_model = load_weights(folder, family, on_meta)
        for one in adapters:
            fit_lora(one, hf_model, family)

    def load(choice: LoadChoice) -> Any:
        if choice.unused and family.stored.unused_modules and not has_unused:
            raise MidsightError(f"{folder} has no audio tower; leave ", Option("audio"), " out.")
        account()  # before memory is taken, and for parts that are not loaded
        hf_model = load_weights(folder, family, choice)
        if choice.lora in ("merged", "unmerged"):
            loras = [fit_lora(one, hf_model, family) for one in adapters]
            with tensor_reader(headers) as read:
                stored = stored_names(headers, family)

                def read_base(name: str) -> Tensor:
                    # published folders may store several weights as one tensor, which transformers has cut at load
                    return read(stored[name]) if name in stored else hf_model.get_parameter(name)

                apply_loras(hf_model, loras, merged=choice.lora == "merged", read_base=read_base)
        return hf_model

    return Checkpoint(
        format="transformers",
        family=family,
        config=config,
        has_own_lora=bool(own),
        headers={**headers, **{name: header for one in own for name, header in one.headers.items()}},
        account=account,
        load_weights=load,
        load_processor=lambda: load_processor(processor_at),
        adapter=adapter,
        notes=processor_notes,
    )


def stored_names(headers: Iterable[str], family: Family) -> dict[str, str]:
    """From the name in transformers' class to the stored name of every tensor."""
    names: dict[str, str] = {}
    for stored in headers:
        name = stored
        for older, newer in family.stored.older_names.items():
            name = re.sub(older, newer, name)
        names |= {stored: stored, name: stored}
    head, embedding = (f"{path}.weight" for path in (family.modules.lm_head, family.modules.token_embedding))
    if head not in names and embedding in names:  # the two are one weight
        names[head] = names[embedding]
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
    """Transformers' processor of the folder, or ProcessorParts if transformers cannot make a whole processor.

    Raises MidsightError if it lacks a package, and the tokenizer alone has no chat template.
    """
    for name in (tokenizer_file(folder), "tokenizer_config.json", processor_file(folder)):
        content = read_json(folder / name)
        if name == "tokenizer.json":
            validate_rules(folder / name, content)
    lacks = ""
    try:
        processor: Any = transformers.AutoProcessor.from_pretrained(folder, **LOCAL)
        if hasattr(processor, "tokenizer") and hasattr(processor, "image_processor"):
            return processor
    except Exception as error:  # the parts are loaded below, or their errors say what is wrong
        lacks = first_line(error) if isinstance(error, ImportError) else ""
    tokenizer = from_pretrained(transformers.AutoTokenizer, folder, tokenizer_file(folder))
    if lacks and not tokenizer.chat_template:
        raise MidsightError(
            f"transformers cannot make the processor of {folder}, which has its chat template ({lacks})."
        )
    path = folder / processor_file(folder)
    try:
        return ProcessorParts(tokenizer, from_pretrained(transformers.AutoImageProcessor, folder, path.name))
    except ModelFileError:
        validate_image_processor(path)
        raise


def validate_image_processor(path: Path) -> None:
    """Raises MidsightError if a file names an image processor that transformers does not have."""
    settings = read_json(path)
    inner = settings.get("image_processor")
    kind = (inner if isinstance(inner, dict) else settings).get("image_processor_type")
    if isinstance(kind, str) and not hasattr(transformers, kind):
        raise MidsightError(
            f"{path} names the image processor {kind[:60]!r}, which transformers does not have; write the name of the "
            "class that it is derived from."
        )


def validate_native_folder(folder: Path, family: Family, adapter: PeftFolder | None) -> None:
    """Raises MidsightError if transformers would load other weights than the folder's, or would quantise them."""
    if (folder / "adapter_config.json").exists():
        raise MidsightError(
            f"{folder} has adapter_config.json next to the model's config, and transformers would load that adapter "
            "and its base model; give the model's own folder, or merge the adapter."
        )
    quantisation = read_json(folder / "config.json").get("quantization_config")
    if quantisation is not None and adapter is not None:
        raise MidsightError(
            f"{folder}, the adapter's base model, is quantised; give ",
            Option("base"),
            " the same model without quantisation, or load both with PEFT and give the model to midsight.wrap.",
        )
    if quantisation is not None:
        raise MidsightError(f"{folder / 'config.json'} has a quantization_config; {how_to_wrap(family.architecture)}.")


def load_weights(folder: Path, family: Family, choice: LoadChoice) -> Any:
    """The model with the folder's weights; raises MidsightError if a tensor is missing, extra or misshapen."""
    unread = () if choice.unused else tuple(family.stored.unused_modules.values())
    architecture = without_modules(getattr(transformers, family.architecture), unread)
    try:
        hf_model, report = architecture.from_pretrained(
            folder,
            dtype=choice.dtype,
            device_map={"": choice.device},
            attn_implementation=family.decoder.attention,
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
                f"{folder} has {counted(len(found), f'{kind} tensor')}, the first is {min(found)}, so it is not a "
                f"complete {family.architecture}"
            )
    return hf_model

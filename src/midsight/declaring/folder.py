"""A model folder of a type that midsight may not know: its config, class and processor, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT_CLASSES

from midsight.checkpoints.checkpoint import ProcessorParts
from midsight.checkpoints.headers import read_json
from midsight.checkpoints.hub import find_small_files, is_adapter, read_architectures
from midsight.checkpoints.native import from_pretrained, load_processor
from midsight.checkpoints.open_folder import read_model_type
from midsight.checkpoints.quiet import quiet_transformers
from midsight.errors import MidsightError
from midsight.families.catalogue import FAMILIES, PUBLISHED_TYPES, find_family
from midsight.families.family import refuse_timm


@dataclass(frozen=True)
class UnknownModel:
    """What is read of a model folder."""

    name: str
    """Folder or hub id, as given."""
    folder: Path
    """Where the files are."""
    model_type: str
    """As in config.json."""
    architecture: str
    """transformers' class, as in config.json."""
    config: Any
    """transformers' config of the whole model."""
    processor: Any
    """transformers' whole processor."""


@quiet_transformers()
def read_model(source: str | Path, *, revision: str | None = None) -> UnknownModel:
    """Reads a model's small files; raises MidsightError for one that transformers has no image-text class for."""
    folder = find_small_files(source, revision=revision).path
    if is_adapter(folder) and not (folder / "config.json").exists():
        raise MidsightError(f"{source} is an adapter; give the folder of its base model.")
    model_type = read_model_type(folder)
    require_own_class(folder, model_type, str(source))
    architecture = find_class(folder, model_type, str(source))
    processor = load_processor(folder)
    if isinstance(processor, ProcessorParts) or not hasattr(processor, "apply_chat_template"):
        raise MidsightError(
            f"transformers makes no whole processor of {source}, so that nothing says what a prompt is; add the "
            "model's processor_config.json."
        )
    config = from_pretrained(transformers.AutoConfig, folder, "config.json")
    refuse_timm(config)
    return UnknownModel(str(source), folder, model_type, architecture, config, processor)


def require_own_class(folder: Path, model_type: str, source: str) -> None:
    """Raises MidsightError for a type that transformers itself does not have."""
    if model_type in transformers.CONFIG_MAPPING or model_type in PUBLISHED_TYPES:
        return
    code = read_json(folder / "config.json").get("auto_map")
    runs = "runs Python code of its own, which midsight never does" if code else "does not load"
    raise MidsightError(
        f"{source} has model_type {model_type!r}, which transformers {transformers.__version__} {runs}; use a folder "
        "that was converted to transformers' own format."
    )


def find_class(folder: Path, model_type: str, source: str) -> str:
    """The class of a model; raises MidsightError if it takes no images and text, or if midsight knows its family."""
    architectures = read_architectures(folder)
    if model_type in PUBLISHED_TYPES or any(name in FAMILIES for name in architectures):
        known = [name for name in architectures if name in FAMILIES]
        config = read_json(folder / "config.json")
        name = find_family(known, config, source).name if known else "Phi-4-multimodal"
        raise MidsightError(
            f"{source} is of the family {name}, which midsight knows; extract from it, or prove it with `midsight "
            "check MODEL --run`."
        )
    if model_type not in IMAGE_TEXT_CLASSES:
        raise MidsightError(
            f"{source} has model_type {model_type!r}, which transformers {transformers.__version__} does not list as a "
            "model that takes images and text and answers; use another model."
        )
    found = [name for name in architectures if name in IMAGE_TEXT_CLASSES.values()]
    return found[0] if found else str(IMAGE_TEXT_CLASSES[model_type])

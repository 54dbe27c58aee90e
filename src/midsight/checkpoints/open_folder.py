"""Opening a model folder of any format; `model_type` in config.json decides which format it is."""

from __future__ import annotations

import importlib
from pathlib import Path

import transformers

from midsight.checkpoints.bounds import validate_files
from midsight.checkpoints.checkpoint import Checkpoint
from midsight.checkpoints.headers import read_json
from midsight.checkpoints.native import open_native
from midsight.checkpoints.peft_folder import PeftFolder
from midsight.errors import MidsightError, ModelFileError, Option, quoted
from midsight.families.catalogue import what_is_known
from midsight.families.family_file import FamilyFile

PUBLISHED_FORMATS = {"phi4mm": "midsight.checkpoints.phi4mm.folder"}
"""From a `model_type` that transformers does not load to the module that opens such a folder, imported when needed."""


def open_checkpoint(
    folder: Path, adapter: PeftFolder | None = None, family_file: FamilyFile | None = None
) -> Checkpoint:
    """Opens a model folder of any format, with an adapter and a family file of the user's if there are any.

    Raises MidsightError.
    """
    model_type = read_model_type(folder)
    if model_type in PUBLISHED_FORMATS:
        if family_file is not None:
            raise MidsightError(
                Option("family", str(family_file.path)),
                f" is for transformers' formats, and {folder} has model_type {model_type!r}; leave it out.",
            )
        return importlib.import_module(PUBLISHED_FORMATS[model_type]).open_published(folder, adapter)
    if model_type not in transformers.CONFIG_MAPPING:
        raise MidsightError(
            f"{folder} has model_type {quoted(repr(model_type), 80)}, which transformers {transformers.__version__} "
            f"does not load without remote code; {what_is_known(model_type)}."
        )
    return open_native(folder, adapter, family_file)


def read_model_type(folder: Path) -> str:
    """`model_type` of the folder's config.json; raises MidsightError if it has none."""
    if not folder.is_dir():
        raise MidsightError(f"{folder} is not a folder; give the folder of a downloaded model.")
    validate_files(folder)
    path = folder / "config.json"
    model_type = read_json(path).get("model_type")
    if not isinstance(model_type, str):
        raise ModelFileError(f"{path} says {quoted(repr(model_type))} for model_type", path)
    return model_type

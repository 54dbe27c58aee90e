"""Which files of a folder, or of a base model and its adapter, the processor is made from."""

from __future__ import annotations

from pathlib import Path

from midsight.checkpoints.hub import VOCABULARY
from midsight.checkpoints.peft_folder import PeftFolder

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files with the image processor's settings; newer transformers write the second for the whole processor."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def processor_file(folder: Path) -> str:
    """Name of the file with the image processor's settings."""
    return next((name for name in PROCESSOR_FILES if (folder / name).is_file()), PROCESSOR_FILES[0])


def tokenizer_file(folder: Path) -> str:
    """Name of the file with the tokenizer's vocabulary."""
    has_parts = all((folder / name).is_file() for name in VOCABULARY)
    return VOCABULARY[0] if has_parts and not (folder / "tokenizer.json").exists() else "tokenizer.json"


def processor_folder(base: Path, adapter: PeftFolder | None) -> tuple[Path, tuple[str, ...]]:
    """The folder whose tokenizer and processor are used: the adapter's if it has both; and notes about it."""
    if adapter is None:
        return base, ()
    has_images = any((adapter.path / name).is_file() for name in PROCESSOR_FILES)
    own = [name for name in TOKENIZER_FILES if (adapter.path / name).is_file()]
    if has_images and len(own) == len(TOKENIZER_FILES):
        return adapter.path, (f"Tokenizer, chat template and image processor are those of {adapter.path}.",)
    if own:
        return base, (
            f"{adapter.path} has {own[0]} and no image processor; tokenizer, chat template and image processor are "
            f"those of {base}.",
        )
    return base, ()

"""The published folder as a Checkpoint: weights, tokenizer and image processor from its own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from midsight.errors import MidsightError
from midsight.models.checkpoint import Checkpoint
from midsight.models.phi4_multimodal import ADAPTER
from midsight.models.phi4mm.weights import load_published, read_published


def open_published(folder: Path) -> Checkpoint:
    """Reads config and tensor headers and accounts for every tensor. Raises MidsightError."""
    published = read_published(folder)
    return Checkpoint(
        layout="published phi4mm",
        adapter=ADAPTER,
        config=published.config,
        has_lora=True,
        load_weights=lambda dtype, device, lora: load_published(folder, dtype=dtype, device=device, lora=lora),
        load_tokenizer=lambda: load_tokenizer(folder),
        load_image_processor=lambda: load_image_processor(folder),
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer exactly as tokenizer.json says.

    transformers 5 would rebuild the class that tokenizer_config.json names and lose its rules.
    """
    settings = read_json(folder / "tokenizer_config.json")
    if not (folder / "tokenizer.json").is_file():
        raise MidsightError(f"{folder} has no tokenizer.json; download it again.")
    kept = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length", "chat_template")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        clean_up_tokenization_spaces=False,
        **{name: settings[name] for name in kept if name in settings},
    )


def load_image_processor(folder: Path) -> Any:
    """Transformers' image processor with the folder's largest number of crops."""
    settings = read_json(folder / "preprocessor_config.json")
    return transformers.Phi4MultimodalImageProcessor(dynamic_hd=settings["dynamic_hd"])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the folder; raises MidsightError where it is missing or no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MidsightError(f"{path} cannot be read ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise MidsightError(f"{path} is no JSON object; download it again.")
    return content

"""The published folder as a Checkpoint: weights, tokenizer and image processor from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from midsight.errors import MidsightError, first_line
from midsight.models.checkpoint import Checkpoint
from midsight.models.headers import read_json
from midsight.models.phi4_multimodal import ADAPTER
from midsight.models.phi4mm.weights import load_published, read_published


def open_published(folder: Path) -> Checkpoint:
    """Reads config and tensor headers and accounts for every tensor. Raises MidsightError."""
    published = read_published(folder)
    published.account()
    return Checkpoint(
        layout="published phi4mm",
        adapter=ADAPTER,
        config=published.config,
        has_lora=True,
        headers=published.headers,
        account=lambda: None,  # opening it did
        load_weights=lambda choice: load_published(folder, published, choice),
        load_tokenizer=lambda: load_tokenizer(folder),
        load_image_processor=lambda: load_image_processor(folder),
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer exactly as tokenizer.json says.

    transformers 5 would rebuild the class that tokenizer_config.json names and lose its rules.
    """
    settings = read_json(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MidsightError(f"{folder} has no tokenizer.json; download it again.")
    kept = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length", "chat_template")
    try:
        return transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(path),
            clean_up_tokenization_spaces=False,
            **{name: settings[name] for name in kept if name in settings},
        )
    except Exception as error:  # the library behind it raises plain Exception on a damaged file
        raise MidsightError(f"{path} is not usable ({first_line(error)}); download it again.") from error


def load_image_processor(folder: Path) -> Any:
    """Transformers' image processor with the folder's largest number of crops."""
    largest: Any = read_json(folder / "preprocessor_config.json").get("dynamic_hd")
    return transformers.Phi4MultimodalImageProcessor(dynamic_hd=largest)

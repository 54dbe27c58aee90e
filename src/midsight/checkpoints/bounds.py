"""Bounds for folders of unknown origin, so that a hostile or broken one is refused before it takes time or memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from midsight.checkpoints.headers import LARGEST_TEXT, Headers
from midsight.errors import MidsightError, counted, quoted

LARGEST_NUMBER = 2**31
"""Largest integer in config.json."""
LAYER_COUNT = re.compile(r"(^|_)(depth|layers|blocks)$")
"""How fields are named that say how often a layer is repeated."""
WIDTH = re.compile(r"(^|_)(dim|size|width|labels)$")
"""How fields are named that say how large a tensor or an image is, or how long a list."""
LARGEST_WIDTH = 2**16
"""Largest width without a tensor of that size; transformers makes lists of such lengths before it loads weights."""
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of the files that midsight or transformers read as a whole."""
LARGEST_SETTINGS = 4 * 1024**2
"""Largest size of a file of settings, in bytes; the largest published tokenizer_config.json has a third of it."""
SETTINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
    "chat_template.json",
)
"""Files whose content becomes objects, which takes much longer than reading it."""
TEMPLATES = "additional_chat_templates"
"""A folder inside the model's that transformers reads too."""


def validate_files(folder: Path) -> None:
    """Raises MidsightError for an entry that is neither a file nor a folder, or a text that is too large to read."""
    for path in sorted([*folder.iterdir(), *(folder / TEMPLATES).glob("*")]):
        if path.is_dir():
            continue
        if path.exists() and not path.is_file():
            raise MidsightError(f"{path} is not a regular file; remove it, or give the folder of a downloaded model.")
        most = LARGEST_SETTINGS if path.name in SETTINGS else LARGEST_TEXT
        if path.exists() and path.suffix in TEXTS and path.stat().st_size > most:
            raise MidsightError(
                f"{path} has {path.stat().st_size / 1e6:.0f} MB, more than the {most / 1e6:.0f} MB that "
                "midsight reads of such a file; remove it if it is not part of the model."
            )


def validate_sizes(config: Mapping[str, Any], headers: Headers, path: Path) -> None:
    """Raises MidsightError for a number in config.json that no model of these tensors has.

    A module is made for each layer, so a wrong number of layers would take hours and all memory.
    """
    largest = max((size for header in headers.values() for size in header.shape), default=0)
    for name, value in _integers(config):
        if abs(value) > LARGEST_NUMBER:
            raise MidsightError(f"{path} says {str(value)[:20]} for {quoted(name)}, which is too large; correct it.")
        if WIDTH.search(name.rpartition(".")[2]) and value > max(LARGEST_WIDTH, largest):
            raise MidsightError(
                f"{path} says {value} for {quoted(name)}, but the largest dimension of a tensor is {largest}; use "
                "config.json and weights of the same model."
            )
        if LAYER_COUNT.search(name.rpartition(".")[2]) and value > len(headers):
            raise MidsightError(
                f"{path} says {value} for {quoted(name)}, but the folder has only {counted(len(headers), 'tensor')}; "
                "use config.json and weights of the same model."
            )


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every integer with its name, however deep it is."""
    found: list[tuple[str, Any]] = [*config.items()]
    while found:
        name, value = found.pop()
        if isinstance(value, Mapping):
            found += [(f"{name}.{key}", inside) for key, inside in value.items()]
        elif isinstance(value, list):
            found += [(name, inside) for inside in value]
        elif type(value) is int:
            yield name, value

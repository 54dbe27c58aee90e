"""Model folders that are written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from midsight.errors import MidsightError

CONTENTS = "contents.json"
"""File with the SHA-256 of every other file in its folder."""


def write_folder(target: Path, write: Callable[[Path], Path], remedy: str) -> Path:
    """Writes the folder `target` completely or not at all, and returns it.

    Args:
        target: The folder to write; it must not exist, or be empty.
        write: Writes a folder and returns it; it gets a temporary path next to `target`.
        remedy: The end of the error's sentence.

    Raises:
        MidsightError: The folder cannot be written, or `target` is not empty.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            write(Path(temporary) / "model").rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MidsightError(f"The model cannot be written to {target} ({reason}); {remedy}.") from error
    return target


def write_checksums(folder: Path) -> Path:
    """Writes the checksums that `is_complete` compares, and returns the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    (folder / CONTENTS).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    return folder


def is_complete(folder: Path) -> bool:
    """Whether every file exists and has its checksum."""
    try:
        digests: dict[str, str] = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return all(sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

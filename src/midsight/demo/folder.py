"""Model folders that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from midsight.errors import MidsightError

CONTENTS = "contents.json"
"""Every other file of a folder with its SHA-256."""


def write_folder(target: Path, write: Callable[[Path], Path], otherwise: str) -> Path:
    """Lets `write` fill a folder beside `target`, gives that folder its name when it is whole, and returns it.

    Raises:
        MidsightError: It cannot be written, or `target` holds something already; the sentence ends in `otherwise`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            write(Path(beside) / "model").rename(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MidsightError(f"The model cannot be written to {target} ({reason}); {otherwise}.") from error
    return target


def list_contents(folder: Path) -> Path:
    """Writes the list that `is_whole` goes by, and returns the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    (folder / CONTENTS).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    return folder


def is_whole(folder: Path) -> bool:
    """Whether every file that was listed is there as it was written."""
    try:
        digests: dict[str, str] = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return all(sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Text files, also compressed ones, opened as bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

from midsight.errors import MidsightError, first_line
from midsight.samples.locations import TextLocation

T = TypeVar("T")

COMPRESSED: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Suffix -> what opens such a file; the suffix before it says what is inside."""

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file raises if its bytes are damaged or missing."""

_lock = Lock()


def table_suffix(path: Path) -> str:
    """The suffix that says what a file holds: `.jsonl` for `a.jsonl` and for `a.jsonl.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def table_stem(path: Path) -> str:
    """The name without the suffixes that say how the file is stored: `a` for `a.jsonl.gz`."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem


def open_bytes(path: Path) -> BinaryIO:
    """The file, decompressed while it is read."""
    compressed = COMPRESSED.get(path.suffix.lower())
    return compressed(path, "rb") if compressed else path.open("rb")


def guarded(path: Path, items: Iterator[T]) -> Iterator[T]:
    """The items read from a file; what is wrong with its bytes becomes a MidsightError that names it."""
    try:
        yield from items
    except UNREADABLE as error:
        raise MidsightError(f"{path} cannot be read: {first_line(error)}; copy or download it again.") from error


def read_again(location: TextLocation) -> bytes:
    """The bytes of a row; a compressed file stays open, because samples are read in the order of the table."""
    if location.file.suffix.lower() not in COMPRESSED:
        with location.file.open("rb") as file:
            file.seek(location.offset_bytes)
            return file.read(location.length_bytes)
    with _lock:
        file = _compressed_file(location.file)
        file.seek(location.offset_bytes)
        return file.read(location.length_bytes)


@lru_cache(maxsize=2)
def _compressed_file(path: Path) -> BinaryIO:
    return open_bytes(path)


def close_compressed_files() -> None:
    """Closes the files that stay open for the images in them."""
    _compressed_file.cache_clear()

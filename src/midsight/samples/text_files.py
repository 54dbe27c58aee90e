"""Text files, also compressed ones, opened as bytes; and what else is found under the name of a table."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import PurePath
from threading import Lock
from typing import Any, BinaryIO, TypeVar

from midsight.buckets.blocks import open_in_blocks, read_span
from midsight.buckets.path import BucketPath, Place
from midsight.errors import MidsightError, first_line
from midsight.samples.locations import TextLocation

T = TypeVar("T")

COMPRESSED: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Suffix -> what opens such a file; the suffix before it says what is inside."""
_MAGIC = {b"\x1f\x8b\x08": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}
"""How compressed data begin -> the suffix that they should have."""
_NOT_TEXT = {
    b"PAR1": "holds Parquet data; name it .parquet",
    b"ARROW1": "holds Arrow data; name it .arrow",
    b"PK\x03\x04": "is a zip archive or an Excel file; unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel file; save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; decompress it with zstd -d",
    b"SQLite format 3\0": "is an SQLite database; write its rows as CSV or Parquet",
}
"""How other files begin -> what is wrong, and what to do."""

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file raises if its bytes are damaged or missing."""

_lock = Lock()


def table_suffix(path: Place) -> str:
    """The suffix that says what a file holds: `.jsonl` for `a.jsonl` and for `a.jsonl.gz`."""
    suffix = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def table_stem(path: Place) -> str:
    """The name without the suffixes that say how the file is stored: `a` for `a.jsonl.gz`."""
    return PurePath(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem


def open_bytes(path: Place) -> BinaryIO:
    """The file, decompressed while it is read; its first bytes say whether it is compressed, whatever its name."""
    compressed = COMPRESSED.get(_compression(path))
    if compressed is None:
        return open_in_blocks(path)
    return compressed(open_in_blocks(path) if isinstance(path, BucketPath) else path, "rb")


def _compression(path: Place) -> str:
    """The suffix of COMPRESSED that stands for how a file is compressed; empty if it is not."""
    return _compression_in_bucket(path) if isinstance(path, BucketPath) else _compression_by_content(path)


def _compression_by_content(path: Place) -> str:
    with path.open("rb") as file:
        begin = file.read(8)
    found = next((suffix for magic, suffix in _MAGIC.items() if begin.startswith(magic)), "")
    return found or (path.suffix.lower() if path.suffix.lower() in COMPRESSED else "")


_compression_in_bucket = lru_cache(maxsize=10_000)(_compression_by_content)


def require_table(path: Place, *, text: bool) -> None:
    """Raises MidsightError, with what to do, if the file's first bytes say that it is surely not a table.

    `text` says whether the table should be text.
    """
    with path.open("rb") as file:
        begin = file.read(256)
    if problem := describe_stand_in(begin):
        raise MidsightError(f"{path} {problem}.")
    compressed = begin.startswith(tuple(_MAGIC))
    if text and not compressed and (suffix := path.suffix.lower()) in COMPRESSED:
        raise MidsightError(
            f"{path} cannot be read: it is not compressed as its name says; if it is text, take {suffix} off its "
            "name, else download it again."
        )
    if compressed and not text:
        raise MidsightError(f"{path} is compressed as a whole; decompress it, with gunzip for example.")
    found = next((problem for magic, problem in _NOT_TEXT.items() if text and begin.startswith(magic)), None)
    if found:
        raise MidsightError(f"{path} {found}.")


def describe_stand_in(begin: bytes) -> str:
    """What is wrong with a file that was stored in place of the one that was asked for, and what to do.

    `begin` are its first bytes; the result is empty unless they are those of a pointer of Git LFS or of a web page.
    """
    if begin.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a pointer of Git LFS and not the file itself; fetch the file with git lfs pull"
    if begin.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, such as an error or a login that a server sent in place of the file; download it again"
    return ""


def guarded(path: Place, items: Iterator[T]) -> Iterator[T]:
    """The items read from a file; what is wrong with its bytes becomes a MidsightError that names it."""
    try:
        yield from items
    except UNREADABLE as error:
        raise MidsightError(f"{path} cannot be read: {first_line(error)}; copy or download it again.") from error


def read_again(location: TextLocation) -> bytes:
    """The bytes of a row; a compressed file stays open, because samples are read in the order of the table."""
    if not _compression(location.file):
        return read_span(location.file, location.offset_bytes, location.length_bytes)
    with _lock:
        file = _compressed_file(location.file)
        file.seek(location.offset_bytes)
        return file.read(location.length_bytes)


@lru_cache(maxsize=2)
def _compressed_file(path: Place) -> BinaryIO:
    return open_bytes(path)


def close_compressed_files() -> None:
    """Closes the files that stay open for the images in them."""
    _compressed_file.cache_clear()
    _compression_in_bucket.cache_clear()

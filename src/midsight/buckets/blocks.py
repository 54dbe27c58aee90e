"""Files, on a disk or in a bucket, that are read from the beginning or at one place."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, cast

from midsight.buckets.path import BucketPath, ObjectFile, Place

FIRST_BLOCK = 256 * 2**10
"""Bytes of the first request for an object that is read on and on; each later one may be twice as large."""
LARGEST_BLOCK = 8 * 2**20
"""Bytes of the largest of these requests."""


class _Blocks(ObjectFile):
    """An object that is read in blocks, which begin small again where the reader jumps."""

    def __init__(self, path: BucketPath) -> None:
        super().__init__(path)
        self._block = FIRST_BLOCK

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = self.tell()
        at = super().seek(offset, whence)
        if not before <= at <= before + self._block:
            self._block = FIRST_BLOCK
        return at

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(memoryview(buffer).cast("B")[: self._block])
        self._block = min(2 * self._block, LARGEST_BLOCK)
        return count


def open_in_blocks(path: Place) -> BinaryIO:
    """The file for reading from its beginning; of one in a bucket, LARGEST_BLOCK bytes are in memory at most."""
    if isinstance(path, BucketPath) and path.content is None:
        return io.BufferedReader(_Blocks(path), LARGEST_BLOCK)
    return cast("BinaryIO", path.open("rb"))


def read_span(path: Place, offset: int, length: int) -> bytes:
    """These bytes of a file; of one in a bucket by a single request."""
    if isinstance(path, BucketPath):
        return path.read_range(offset, offset + length)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)

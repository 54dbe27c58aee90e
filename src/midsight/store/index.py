"""The index of a run in a bucket: copies of commit records in few objects, so that opening needs few requests.

A copy counts only while its record is listed with the same ETag, so an index that is stale, damaged or missing makes
opening slow and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from midsight.buckets.path import BucketPath, Place, Stored
from midsight.buckets.reading import read_all
from midsight.store.files import PARTS, Shard, parse_stem, shard_name

INDEX = "index"
INDEX_EVERY = 100
"""Commits of a shard after which they are added to the index; also the most copies in one of its objects."""


@dataclass(frozen=True)
class Snapshot:
    """The parts and records of a run in a bucket at one moment."""

    objects: Mapping[str, Stored]
    """Parts and records by name."""
    records: Mapping[str, bytes]
    """Content of the records by name."""


@dataclass(frozen=True)
class _Copy:
    """A record's copy in the index."""

    e_tag: str
    content: bytes

    def is_of(self, record: Stored | None) -> bool:
        """Whether the record is as it was when it was copied."""
        return record is not None and self.e_tag != "" and record.e_tag == self.e_tag


def take_snapshot(path: Place, *, shard: Shard | None = None, indexed: bool = True) -> Snapshot | None:
    """The parts and records of a run in a bucket, with few requests; None for a run on a disk.

    With `shard`, only the records of that shard are read. Without `indexed` every record is read itself.
    """
    if not isinstance(path, BucketPath):
        return None
    folder = path / INDEX / shard_name(shard) if shard else path / INDEX
    with ThreadPoolExecutor(1) as pool:
        index = pool.submit(_read_index, folder if indexed else None)
        objects = (path / PARTS).listing()
    copies = {name: copy for file in index.result().values() for name, copy in file.items()}
    known = {name: copy.content for name, copy in copies.items() if copy.is_of(objects.get(name))}
    others = [path / PARTS / name for name in objects if _is_read(name, shard) and name not in known]
    return Snapshot(objects, {**known, **read_all(others)})


def extend_index(path: Place, shard: Shard) -> None:
    """Add the records of a shard that are not in its index, and drop copies of those that are gone.

    Does nothing for a run on a disk. The shard's lock must be held.
    """
    if not isinstance(path, BucketPath):
        return
    folder = path / INDEX / shard_name(shard)
    objects = (path / PARTS).listing()
    files = _read_index(folder)
    valid = {file: {name for name, copy in copies.items() if copy.is_of(objects.get(name))}
             for file, copies in files.items()}  # fmt: skip
    covered = {name for names in valid.values() for name in names}
    missing = sorted(name for name in objects if _shard_of(name) == shard and name not in covered)
    for start in range(0, len(missing), INDEX_EVERY):
        names = missing[start : start + INDEX_EVERY]
        contents = read_all(path / PARTS / name for name in names)
        copies = {name: [objects[name].e_tag, content.decode("ascii")] for name, content in contents.items()}
        (folder / names[-1]).write_bytes(json.dumps({"records": copies}).encode())
    for file, names in valid.items():
        if not names and file not in missing:
            (folder / file).unlink()


def _read_index(folder: BucketPath | None) -> dict[str, dict[str, _Copy]]:
    """The copies of records in the index objects below `folder`, by object and name; without damaged objects."""
    if folder is None:
        return {}
    found = {}
    for file, content in read_all(folder.rglob()).items():
        with suppress(ValueError, RecursionError, TypeError, AttributeError):
            stored: Any = json.loads(content)
            found[file] = {
                name: _Copy(e_tag, text.encode("ascii")) for name, (e_tag, text) in stored["records"].items()
            }
    return found


def _is_read(name: str, shard: Shard | None) -> bool:
    of = _shard_of(name)
    return of is not None and shard in (None, of)


def _shard_of(name: str) -> Shard | None:
    """The shard of the record of this name; None for another name."""
    found = parse_stem(name.removesuffix(".json")) if name.endswith(".json") else None
    return found[0] if found else None

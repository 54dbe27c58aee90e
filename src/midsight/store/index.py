"""The index of a run in a bucket: copies of commit records in few objects, so that opening needs few requests.

A copy counts only while its record is listed with the same ETag, so an index that is stale, damaged or missing makes
opening slow and changes nothing. So any process may write, merge and delete its objects at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from midsight.buckets.path import BucketPath, Place, Stored
from midsight.buckets.reading import read_all
from midsight.errors import DamagedRunError
from midsight.store.files import PARTS, Shard, open_seal, parse_stem, read_json, shard_name

INDEX = "index"
INDEX_EVERY = 100
"""Commits of a shard after which records are added to the index; a shard with fewer is read without it."""
INDEX_RECORDS = 1000
"""Most copies in one object of the index."""


@dataclass(frozen=True)
class Snapshot:
    """The parts and records of a run in a bucket at one moment."""

    objects: Mapping[str, Stored]
    """Parts and records by name."""
    records: Mapping[str, bytes]
    """Content of those records by name that the index does not have."""
    copies: Mapping[str, Mapping[str, Any]]
    """Content of the others by name, without their seals."""


@dataclass(frozen=True)
class _Copy:
    """A record's copy in the index."""

    e_tag: str
    content: Mapping[str, Any]
    """The record without its seal, which was compared when the copy was made."""

    def is_of(self, record: Stored | None) -> bool:
        """Whether the record is as it was when it was copied."""
        return record is not None and self.e_tag != "" and record.e_tag == self.e_tag


def take_snapshot(path: Place, *, shard: Shard | None = None, indexed: bool = True) -> Snapshot | None:
    """The parts and records of a run in a bucket, with few requests; None for a run on a disk.

    With `shard`, only those of that shard. Without `indexed` every record is read itself.
    """
    if not isinstance(path, BucketPath):
        return None
    index: Mapping[str, Mapping[str, _Copy]] = {}
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read_index, path / INDEX) if indexed and shard is None else None
        objects = (path / PARTS).listing(f"{shard_name(shard)}-" if shard else "")
        if reading is not None:
            index = reading.result()
        elif indexed and len(objects) > 2 * INDEX_EVERY:
            index = _read_index(path / INDEX)
    copies = _valid(index.values(), objects)
    others = [path / PARTS / name for name in objects if _is_record(name) and name not in copies]
    return Snapshot(objects, read_all(others), {name: copy.content for name, copy in copies.items()})


def extend_index(path: Place) -> None:
    """Add the records that are not in the index, merge its small objects, and drop copies of records that are gone.

    Does nothing for a run on a disk.
    """
    if not isinstance(path, BucketPath):
        return
    folder = path / INDEX
    objects = (path / PARTS).listing()
    found = {name: _valid([copies], objects) for name, copies in _read_index(folder).items()}
    full = _full(found)
    covered = {record for name in full for record in found[name]}
    copies = {
        record: copy for name, some in found.items() if name not in full for record, copy in some.items()
        if record not in covered
    }  # fmt: skip
    missing = [name for name in objects if _is_record(name) and name not in covered and name not in copies]
    copies |= _make_copies(path, missing, objects)
    written = {*full}
    for records in _portions(sorted(copies)):
        content = _spell({record: copies[record] for record in records})
        written.add(name := _name_of(content))
        if name not in found:
            (folder / name).write_bytes(content)
    folder.unlink_in(name for name in found if name not in written)


def _full(found: Mapping[str, Mapping[str, _Copy]]) -> set[str]:
    """The full objects, without those that have little which others of them do not have.

    Writers that extend the index at the same time write many of nearly the same records.
    """
    full, covered = set[str](), set[str]()
    for name in sorted(found):
        records = found[name].keys()
        if len(records) >= INDEX_RECORDS and 2 * len(records - covered) > INDEX_RECORDS:
            full.add(name)
            covered |= records
    return full


def _make_copies(path: BucketPath, names: Iterable[str], objects: Mapping[str, Stored]) -> dict[str, _Copy]:
    """Copies of these records, without those that are gone or damaged: readers look at them themselves."""
    copies = {}
    for name, content in read_all(path / PARTS / name for name in names).items():
        with suppress(DamagedRunError):
            file = path / PARTS / name
            copies[name] = _Copy(objects[name].e_tag, open_seal(file, read_json(file, content)))
    return copies


def _read_index(folder: BucketPath) -> dict[str, Mapping[str, _Copy]]:
    """The copies of records by the name of their object in the index; a damaged object has none."""
    contents = read_all(folder / name for name in folder.listing())
    return {name: _parse(name, content) for name, content in contents.items()}


def _spell(copies: Mapping[str, _Copy]) -> bytes:
    records = {name: [copy.e_tag, copy.content] for name, copy in copies.items()}
    return json.dumps({"records": records}, separators=(",", ":")).encode("ascii")


def _parse(name: str, content: bytes) -> Mapping[str, _Copy]:
    if name == _name_of(content):
        with suppress(ValueError, RecursionError, TypeError, AttributeError, KeyError):
            stored: Any = json.loads(content)
            return {record: _Copy(e_tag, body) for record, (e_tag, body) in stored["records"].items()}
    return {}


def _name_of(content: bytes) -> str:
    """What an object of the index is called: its SHA-256, so that damage shows, and no writer replaces another's."""
    return f"{hashlib.sha256(content).hexdigest()}.json"


def _valid(files: Iterable[Mapping[str, _Copy]], objects: Mapping[str, Stored]) -> dict[str, _Copy]:
    """The copies of records that are as they were."""
    return {name: copy for copies in files for name, copy in copies.items() if copy.is_of(objects.get(name))}


def _portions(names: list[str]) -> list[list[str]]:
    return [names[start : start + INDEX_RECORDS] for start in range(0, len(names), INDEX_RECORDS)]


def _is_record(name: str) -> bool:
    return name.endswith(".json") and parse_stem(name.removesuffix(".json")) is not None

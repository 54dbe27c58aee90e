"""File names inside a run folder, and writing files so that each is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from midsight.buckets.path import BucketPath, Place
from midsight.errors import CommitError, DamagedRunError, MidsightError, Option, RunError

Shard = tuple[int, int]
"""Which share of a dataset a process writes: the shard's number, from 0, and the number of shards."""

RUN_JSON = "run.json"
PARTS = "parts"
LOCKS = "locks"
START_LOCK = "run.lock"

_SHARD = re.compile(r"([0-9]{1,9})-of-([0-9]{1,9})")
_STEM = re.compile(_SHARD.pattern + r"-([0-9]{6,18})")


def shard_name(shard: Shard) -> str:
    """The shard as file names spell it: `0-of-1`."""
    return f"{shard[0]}-of-{shard[1]}"


def parse_shard_name(name: str) -> Shard | None:
    """The shard that `name` spells exactly as `shard_name` does; None for any other name."""
    match = _SHARD.fullmatch(name)
    shard = match and (int(match[1]), int(match[2]))
    return shard if shard and shard[0] < shard[1] and shard_name(shard) == name else None


def validate_shard(shard: Shard) -> None:
    """Raise MidsightError for a shard that does not exist."""
    if not (isinstance(shard, tuple | list) and len(shard) == 2 and all(type(number) is int for number in shard)):
        raise MidsightError(Option("shard"), f" is {shard!r}; give (I, N), like (0, 4) for the first of four.")
    number, count = shard
    if not 0 <= number < count:
        raise MidsightError(Option("shard", shard), " does not exist; N shards have the numbers 0 to N-1.")


def parse_shard(text: str) -> Shard:
    """The shard that `I/N` spells; raises MidsightError."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None:
        raise MidsightError(
            Option("shard", text), " is not a share of a dataset; write I/N, like 0/4 for the first of four."
        )
    shard = (int(match[1]), int(match[2]))
    validate_shard(shard)
    return shard


def free_bytes(path: Place) -> int | None:
    """Free space on the disk where `path` is, or will be; None in a bucket. Raises RunError if it cannot be read."""
    if isinstance(path, BucketPath):
        return None
    with reporting_unreadable(path):
        return shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free


def commit_stem(shard: Shard, counter: int) -> str:
    """The name that a part and its commit record share: `0-of-1-000000`."""
    return f"{shard_name(shard)}-{counter:06d}"


def parse_stem(stem: str) -> tuple[Shard, int] | None:
    """Shard and counter in the name of a part or record, spelled exactly as `commit_stem` does; None for another."""
    match = _STEM.fullmatch(stem)
    if match is None:
        return None
    shard, counter = (int(match[1]), int(match[2])), int(match[3])
    return (shard, counter) if shard[0] < shard[1] and commit_stem(shard, counter) == stem else None


def temporary_name(name: str) -> str:
    """The name under which the file `name` is written before it is renamed."""
    return f".{name}.tmp"


def write_new(path: Place, data: Any) -> None:
    """Write `data` to `path`, where no file is, so that a crash leaves none or the whole one.

    In a bucket the store itself refuses a second one. Raises OSError, FileExistsError among them.
    """
    if isinstance(path, BucketPath):
        path.create(data)
    else:
        write_atomically(path, data)


def write_atomically(path: Place, data: Any, *, flush: bool = True) -> None:
    """Write `data` (bytes or a buffer) to `path` so that a crash leaves either the old file or the whole new one.

    Without `flush` this covers a crash of this process, not of the machine. Raises OSError and then leaves `path` as
    it was.
    """
    if isinstance(path, BucketPath):
        path.write_bytes(data)
        return
    aside = path.with_name(temporary_name(path.name))
    try:
        with aside.open("wb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    if flush:
        flush_folder(path.parent)


def rename(path: Place, name: str) -> None:
    """Give a file another name in its folder, in place of one that has it. Raises OSError."""
    if isinstance(path, BucketPath):
        path.rename(name)
    else:
        path.replace(path.with_name(name))


def flush_folder(path: Place) -> None:
    """Make added and removed names in the folder `path` survive a power cut. Raises OSError."""
    if isinstance(path, BucketPath):
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def reporting_disk_errors(path: Place, what: str, kind: type[RunError] = CommitError) -> Iterator[None]:
    """Turn an OSError into an error that says: `path` could not be `what`, and the run can resume."""
    try:
        yield
    except OSError as error:
        raise kind(
            f"{path} could not be {what}: {error.strerror or error}; what was committed before is intact, "
            "so fix that and run the same command again to resume."
        ) from error


@contextmanager
def reporting_unreadable(path: Place) -> Iterator[None]:
    """Turn an OSError into a RunError that says: `path` cannot be read."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be read: {error.strerror or error}; check the name, the disk and its permissions."
        ) from error


def write_sealed_json(path: Place, body: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write `body` as a JSON object with one more key, `seal`: its own SHA-256. Raises OSError."""
    write_atomically(path, sealed_json(body, indent=indent))


def sealed_json(body: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """`body` as a JSON object with one more key, `seal`: its own SHA-256."""
    return (json.dumps({**body, "seal": _seal(body)}, indent=indent, allow_nan=False) + "\n").encode("ascii")


def read_json(path: Place, data: bytes | None = None) -> dict[str, Any]:
    """The JSON object in `path`, its seal not yet compared; raises DamagedRunError if it holds none.

    `data` is the file's content, if it was read already.
    """
    try:
        if data is None and not isinstance(path, BucketPath) and not stat.S_ISREG(path.stat().st_mode):
            raise DamagedRunError(f"{path} is damaged: it is not a file; {remedy(path)}.")
        body = json.loads(path.read_bytes() if data is None else data)
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(f"{path} is damaged: it is not JSON ({error}); {remedy(path)}.") from error
    except OSError as error:
        raise DamagedRunError(
            f"{path} cannot be read: {error.strerror}; check the disk and its permissions."
        ) from error
    if not isinstance(body, dict):
        raise DamagedRunError(f"{path} is damaged: it does not hold a JSON object; {remedy(path)}.")
    return body


def open_seal(path: Place, body: Mapping[str, Any]) -> dict[str, Any]:
    """`body`, as read from `path`, without its seal; raises DamagedRunError if the seal is not its SHA-256."""
    content = {key: value for key, value in body.items() if key != "seal"}
    try:
        is_whole = body.get("seal") == _seal(content)
    except RecursionError:  # so deeply nested that it can be read and not written
        is_whole = False
    if not is_whole:
        raise DamagedRunError(f"{path} is damaged: its content does not match its seal; {remedy(path)}.")
    return content


def remedy(path: Place) -> str:
    """What to do about the damaged JSON file `path` of a run folder."""
    if path.name == RUN_JSON:
        return "restore it from a copy, or extract into another folder"
    return f"delete it and {path.stem}.parquet, and run the same extract command again"


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()

"""Commit records: what makes a part exist, and where failures are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from midsight.errors import DamagedRunError
from midsight.samples.sample import Failure
from midsight.store.layout import (
    PARTS,
    Shard,
    commit_stem,
    open_seal,
    parse_stem,
    read_json,
    shard_name,
    temporary_name,
    write_sealed_json,
)
from midsight.store.parts import PartDigest, damaged_part


@dataclass(frozen=True)
class Commit:
    """One commit of one shard, as its record tells it."""

    shard: Shard
    """The shard that made it."""
    counter: int
    """Its number among the commits of that shard, from 0."""
    part: PartDigest | None
    """The part of the same name; None when the commit holds failures only."""
    failures: tuple[Failure, ...]
    """The samples that failed since the commit before."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
    """UTC, ISO 8601."""

    @property
    def rows(self) -> int:
        """Rows of the part."""
        return self.part.rows if self.part else 0


def part_path(path: Path, shard: Shard, counter: int) -> Path:
    """Where the run folder `path` keeps the part of one commit."""
    return path / PARTS / f"{commit_stem(shard, counter)}.parquet"


def record_path(path: Path, shard: Shard, counter: int) -> Path:
    """Where the run folder `path` keeps the record of one commit."""
    return path / PARTS / f"{commit_stem(shard, counter)}.json"


def write_commit(path: Path, commit: Commit) -> None:
    """Write the record of `commit` into the run folder `path`; its part must be there. Raises OSError."""
    body = {name: value for name, value in asdict(commit).items() if name in ("part", "failures", "created")}
    write_sealed_json(record_path(path, commit.shard, commit.counter), body)


def read_commits(path: Path) -> tuple[Commit, ...]:
    """Every commit of the run folder `path`, oldest first.

    Raises DamagedRunError when a record cannot be read, when a part is missing or has another size
    than its record says, and when a part before the last one has lost its record.
    """
    commits = [_read_commit(path, *name) for name in _names(path, ".json")]
    newest: dict[Shard, int] = {}
    for commit in commits:
        newest[commit.shard] = max(commit.counter, newest.get(commit.shard, 0))
    for shard, counter in _names(path, ".parquet"):
        # Only the last part can lack its record because a process died between the two. The
        # record is looked for again: a writer may have added it while the folder was listed.
        if counter < newest.get(shard, 0) and not record_path(path, shard, counter).exists():
            raise damaged_part(part_path(path, shard, counter), "its record is missing, and later ones are there")
    return tuple(sorted(commits, key=lambda commit: (commit.created, commit.shard, commit.counter)))


def remove_leftovers(path: Path, shard: Shard, next_counter: int) -> None:
    """Delete what a dead process of `shard` left uncommitted. The shard's lock must be held. Raises OSError."""
    for file in (path / PARTS).glob(temporary_name(f"{shard_name(shard)}-*")):
        file.unlink()
    for name in _names(path, ".parquet"):
        if name[0] == shard and name[1] >= next_counter:
            part_path(path, *name).unlink()


def _names(path: Path, suffix: str) -> Iterator[tuple[Shard, int]]:
    for file in sorted((path / PARTS).glob(f"*{suffix}")):
        name = parse_stem(file.stem)
        if name is not None:
            yield name


def _read_commit(path: Path, shard: Shard, counter: int) -> Commit:
    file = record_path(path, shard, counter)
    content = open_seal(file, read_json(file))
    try:
        part = content["part"] and PartDigest(
            **{**content["part"], "chunk_crc32": tuple(map(tuple, content["part"]["chunk_crc32"]))}
        )
        failures = tuple(Failure(**failure) for failure in content["failures"])
        commit = Commit(shard, counter, part, failures, content["created"])
    except (TypeError, KeyError) as error:
        raise DamagedRunError(f"The commit record {file} is damaged: {error!r} does not belong there.") from error
    if part:
        _check_size(part_path(path, shard, counter), part)
    return commit


def _check_size(file: Path, part: PartDigest) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise damaged_part(file, f"it cannot be found ({error.strerror})") from error
    if size != part.bytes:
        raise damaged_part(file, f"it has {size} bytes instead of {part.bytes}")

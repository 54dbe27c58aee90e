"""Commit records: what makes a part exist, and where failures are kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from midsight.errors import DamagedRunError
from midsight.samples.sample import Failure
from midsight.store.layout import (
    PARTS,
    Shard,
    commit_stem,
    flush_folder,
    open_seal,
    parse_stem,
    read_json,
    reporting_unreadable,
    shard_name,
    temporary_name,
    write_sealed_json,
)
from midsight.store.parts import PartDigest, damaged_part

Name = tuple[Shard, int]
"""Shard and counter of a commit."""


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
    """UTC, ISO 8601; of merged commits, that of the last."""
    replaces: tuple[int, ...] = ()
    """Counters, all lower, of the commits of this shard that were merged into this one: whatever is
    left of their files does not exist."""

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
    if commit.replaces:
        body["replaces"] = commit.replaces
    write_sealed_json(record_path(path, commit.shard, commit.counter), body)


def read_commits(path: Path) -> tuple[Commit, ...]:
    """Every commit of the run folder `path`, oldest first, without those that a later one replaces.

    Raises DamagedRunError when a record cannot be read, when a part is missing or has another size
    than its record says, and when a part before the last one has lost its record.
    """
    while True:
        listed = commit_names(path, ".json")
        try:
            return _read_listed(path, listed)
        except DamagedRunError:
            # Compaction removes a record before its part. Where none is gone, this is damage.
            if set(listed) <= set(commit_names(path, ".json")):
                raise


def read_record(path: Path, shard: Shard, counter: int) -> Commit:
    """The commit that one record tells of, its part not looked at; raises DamagedRunError."""
    file = record_path(path, shard, counter)
    content = open_seal(file, read_json(file))
    try:
        part = content["part"] and PartDigest(
            **{**content["part"], "chunk_crc32": tuple(map(tuple, content["part"]["chunk_crc32"]))}
        )
        failures = tuple(Failure(**failure) for failure in content["failures"])
        return Commit(shard, counter, part, failures, content["created"], tuple(content.get("replaces", ())))
    except (TypeError, KeyError) as error:
        raise DamagedRunError(f"The commit record {file} is damaged: {error!r} does not belong there.") from error


def check_size(file: Path, part: PartDigest) -> None:
    """Raise DamagedRunError unless the part at `file` is there and as long as its record says."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise damaged_part(file, f"it cannot be found ({error.strerror})") from error
    if size != part.bytes:
        raise damaged_part(file, f"it has {size} bytes instead of {part.bytes}")


def remove_leftovers(path: Path, shard: Shard, next_counter: int) -> None:
    """Delete what a dead process of `shard` left uncommitted. The shard's lock must be held. Raises OSError."""
    for file in (path / PARTS).glob(temporary_name(f"{shard_name(shard)}-*")):
        file.unlink()
    for name in commit_names(path, ".parquet"):
        if name[0] == shard and name[1] >= next_counter:
            part_path(path, *name).unlink()


def remove_replaced(path: Path, shard: Shard, commits: Iterable[Commit]) -> None:
    """Delete what is left of the commits that `commits` replace in `shard`. Its lock must be held. Raises OSError."""
    replaced = {(shard, counter) for commit in commits if commit.shard == shard for counter in commit.replaces}
    if left := replaced & {*commit_names(path, ".json"), *commit_names(path, ".parquet")}:
        for name in sorted(left):
            remove_commit(path, *name)
        flush_folder(path / PARTS)


def remove_commit(path: Path, shard: Shard, counter: int) -> None:
    """Delete a record, then its part: what of them is there. The shard's lock must be held. Raises OSError."""
    record_path(path, shard, counter).unlink(missing_ok=True)
    part_path(path, shard, counter).unlink(missing_ok=True)


def commit_names(path: Path, suffix: str) -> list[tuple[Shard, int]]:
    """Shard and counter of every record (`.json`) or part (`.parquet`) in the run folder `path`, sorted.

    Raises RunError for a folder that cannot be listed: not the same as one that is empty.
    """
    with reporting_unreadable(path / PARTS), suppress(FileNotFoundError):
        names = (parse_stem(file.stem) for file in (path / PARTS).iterdir() if file.suffix == suffix)
        return sorted(name for name in names if name is not None)
    return []


def lost_records(path: Path, replaced: Collection[Name]) -> dict[Name, str]:
    """The parts whose record was there and is not, each with what tells so; `replaced` commits do not count.

    Only a process that died between part and record leaves a part without one, and its counter is the
    next after the newest record's.
    """
    parts = [name for name in commit_names(path, ".parquet") if name not in replaced]
    # Listed after the parts: a writer may have made more commits since, and then their records are here.
    records = {*commit_names(path, ".json")}
    newest = dict(sorted(records))
    lost: dict[Name, str] = {}
    for shard, counter in parts:
        last = newest.get(shard, -1)
        if (shard, counter) not in records and counter != last + 1:
            others = "later ones are there" if counter < last else "so are those before it"
            lost[shard, counter] = f"its record is missing, and {others}"
    return {name: why for name, why in lost.items() if not record_path(path, *name).exists()}


def _read_listed(path: Path, listed: list[tuple[Shard, int]]) -> tuple[Commit, ...]:
    commits: list[Commit] = []
    replaced: set[tuple[Shard, int]] = set()
    for name in reversed(listed):  # a commit is replaced by one with a higher counter
        if name not in replaced:
            commit = read_record(path, *name)
            if commit.part:
                check_size(part_path(path, *name), commit.part)
            replaced |= {(commit.shard, counter) for counter in commit.replaces}
            commits.append(commit)
    for name, why in lost_records(path, replaced).items():
        raise damaged_part(part_path(path, *name), why)
    return tuple(sorted(commits, key=lambda commit: (commit.created, commit.shard, commit.counter)))

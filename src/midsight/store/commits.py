"""Commit records. A part counts once its record is written; the record also holds failures."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from midsight.buckets.path import BucketPath, Place
from midsight.errors import DamagedRunError, OtherRunError, RenamedError, counted
from midsight.samples.sample import Failure
from midsight.store.files import (
    PARTS,
    RUN_JSON,
    Shard,
    commit_stem,
    flush_folder,
    open_seal,
    parse_stem,
    read_json,
    remedy,
    reporting_unreadable,
    sealed_json,
    shard_name,
    temporary_name,
    write_new,
)
from midsight.store.index import Snapshot, take_snapshot
from midsight.store.parts import PartDigest, damaged_part
from midsight.store.typed_json import WrongJsonError, from_json, to_json

CommitKey = tuple[Shard, int]
"""Shard and counter of a commit."""


def utc_now() -> str:
    """The time, UTC, ISO 8601; such texts sort like the times."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Commit:
    """One commit of one shard, as its record describes it."""

    shard: Shard
    """The shard that made it."""
    counter: int
    """Its number among the commits of that shard, from 0."""
    part: PartDigest | None
    """The part of the same name; None if the commit holds failures only."""
    failures: tuple[Failure, ...]
    """The samples that failed since the previous commit."""
    created: str = field(default_factory=utc_now)
    """UTC, ISO 8601; for a merged commit, the time of the last commit in it."""
    replaces: tuple[int, ...] = ()
    """Counters, all lower, of the commits of this shard that were merged into this one. Their
    leftover files do not count."""

    @property
    def key(self) -> CommitKey:
        """Shard and counter."""
        return self.shard, self.counter

    @property
    def name(self) -> str:
        """The name that record and part share: `0-of-1-000000`."""
        return commit_stem(self.shard, self.counter)

    @property
    def rows(self) -> int:
        """Rows of the part."""
        return self.part.rows if self.part else 0


@dataclass(frozen=True, kw_only=True)
class _StoredCommit:
    """The content of a commit record."""

    run_id: str
    """The run that the commit belongs to."""
    name: str
    """The name of the record's file, without its suffix."""
    part: PartDigest | None
    """As in Commit."""
    failures: tuple[Failure, ...]
    """As in Commit."""
    created: str
    """As in Commit."""
    replaces: tuple[int, ...]
    """As in Commit."""


def size_of_part(commit: Commit) -> int:
    """Size of the commit's part in bytes; 0 without a part."""
    return commit.part.bytes if commit.part else 0


def part_path(path: Place, shard: Shard, counter: int) -> Place:
    """Where the run folder `path` keeps the part of one commit."""
    return path / PARTS / f"{commit_stem(shard, counter)}.parquet"


def record_path(path: Place, shard: Shard, counter: int) -> Place:
    """Where the run folder `path` keeps the record of one commit."""
    return path / PARTS / f"{commit_stem(shard, counter)}.json"


def write_commit(path: Place, commit: Commit, run_id: str) -> None:
    """Write the record of `commit` into the run folder `path`; its part must be there. Raises OSError."""
    stored = _StoredCommit(
        run_id=run_id,
        name=commit.name,
        part=commit.part,
        failures=commit.failures,
        created=commit.created,
        replaces=commit.replaces,
    )
    write_new(record_path(path, *commit.key), sealed_json(to_json(stored)))


def read_commits(path: Place, run_id: str, shard: Shard | None = None) -> tuple[Commit, ...]:
    """Every commit of the run folder `path`, or of one shard, oldest first, without those that a later one replaces.

    Raises DamagedRunError for a record that cannot be read or does not belong to the run `run_id`. It is also
    raised for a part that is missing or has another size than its record says, and for a part before the last
    one that has lost its record.
    """
    while True:
        snapshot = take_snapshot(path, shard=shard)
        listed = [key for key in list_commits(path, ".json", snapshot) if shard in (None, key[0])]
        try:
            return _read_listed(path, listed, run_id, shard, snapshot)
        except DamagedRunError:
            # Compaction removes a record before its part. If no record is gone, this is damage.
            if set(listed) <= set(list_commits(path, ".json")):
                raise


def read_record(
    path: Place, shard: Shard, counter: int, run_id: str | None, snapshot: Snapshot | None = None
) -> Commit:
    """The commit that one record describes, without looking at its part.

    `snapshot` may have the record's content already.

    Raises DamagedRunError if the record is not what was written, RenamedError if it was renamed, OtherRunError if it
    is of another run than `run_id`; with None it may be of any run.
    """
    file = record_path(path, shard, counter)
    content = snapshot.copies.get(file.name) if snapshot else None
    if content is None:
        content = open_seal(file, read_json(file, snapshot.records.get(file.name) if snapshot else None))
    try:
        stored = from_json(_StoredCommit, content)
    except WrongJsonError as error:
        raise DamagedRunError(f"The commit record {file} is damaged: {error}; {remedy(file)}.") from error
    if run_id not in (None, stored.run_id):
        raise OtherRunError(
            f"The commit record {file} is of run {stored.run_id}, and {RUN_JSON} is of run {run_id}, so one of "
            f"them was copied from another run; `midsight verify {path}` says which.",
            stored.run_id,
        )
    if stored.name != file.stem:
        raise RenamedError(
            f"The commit record {file} was renamed: it was written as {stored.name}; rename it and its part back, or "
            f"delete both if {stored.name}.json is there.",
            stored.name,
        )
    if not all(0 <= replaced < counter for replaced in stored.replaces):
        raise DamagedRunError(f"The commit record {file} is damaged: it replaces a commit that is not before it; "
                              f"{remedy(file)}.")  # fmt: skip
    return Commit(shard, counter, stored.part, stored.failures, stored.created, stored.replaces)


def require_size(file: Place, part: PartDigest, snapshot: Snapshot | None = None) -> None:
    """Raise DamagedRunError unless the part at `file` is there and has the size that its record says.

    `snapshot` may have its size already.
    """
    listed = snapshot.objects.get(file.name) if snapshot else None
    try:
        size = listed.size if listed else file.stat().st_size
    except OSError as error:
        raise damaged_part(file, f"it cannot be found ({error.strerror})") from error
    if size != part.bytes:
        raise damaged_part(file, f"it has {counted(size, 'byte')} instead of {part.bytes:,}")


def remove_leftovers(path: Place, shard: Shard, next_counter: int, run_id: str) -> int:
    """Delete what a dead process of `shard` left uncommitted. The shard's lock must be held. Raises OSError.

    Returns the counter of the next commit. In a bucket, the process may not be dead and may still write the record of
    its part. So an empty commit takes that record's place first: one of the two writes is refused.
    """
    left = [key for key in list_commits(path, ".parquet") if key[0] == shard and key[1] >= next_counter]
    if isinstance(path, BucketPath):
        for key in left:
            write_commit(path, Commit(*key, None, ()), run_id)
            next_counter = max(next_counter, key[1] + 1)
    else:
        for file in (path / PARTS).glob(temporary_name(f"{shard_name(shard)}-*")):
            file.unlink()
    for key in left:
        part_path(path, *key).unlink()
    return next_counter


def remove_replaced(path: Place, shard: Shard, commits: Iterable[Commit]) -> None:
    """Delete what is left of the commits that `commits` replace in `shard`. Its lock must be held. Raises OSError."""
    replaced = {(shard, counter) for commit in commits if commit.shard == shard for counter in commit.replaces}
    if left := replaced & {*list_commits(path, ".json"), *list_commits(path, ".parquet")}:
        remove_commits(path, sorted(left))


def remove_commits(path: Place, keys: Collection[CommitKey]) -> None:
    """Delete each record, then its part, if they are there. The shards' locks must be held. Raises OSError."""
    if isinstance(path, BucketPath):
        for suffix in (".json", ".parquet"):
            (path / PARTS).unlink_in(f"{commit_stem(*key)}{suffix}" for key in keys)
        return
    for key in keys:
        record_path(path, *key).unlink(missing_ok=True)
        part_path(path, *key).unlink(missing_ok=True)
    flush_folder(path / PARTS)


def list_commits(path: Place, suffix: str, snapshot: Snapshot | None = None) -> list[CommitKey]:
    """Shard and counter of every record (`.json`) or part (`.parquet`) in the run folder `path`, sorted.

    `snapshot` may have the names already. Raises RunError for a folder that cannot be listed, which is not an empty
    one.
    """
    with reporting_unreadable(path / PARTS), suppress(FileNotFoundError):
        names = snapshot.objects if snapshot else (file.name for file in (path / PARTS).iterdir())
        keys = (parse_stem(name.removesuffix(suffix)) for name in names if name.endswith(suffix))
        return sorted(key for key in keys if key is not None)
    return []


def lost_records(
    path: Place, replaced: Collection[CommitKey], snapshot: Snapshot | None = None
) -> dict[CommitKey, str]:
    """The parts that have lost their record, each with the evidence; `replaced` commits do not count.

    A process that died between part and record also leaves a part without a record. The counter of
    that part is the next after the newest record's.
    """
    parts = [key for key in list_commits(path, ".parquet", snapshot) if key not in replaced]
    # Listed after the parts, so that commits made in between have their records in this list.
    records = {*list_commits(path, ".json", snapshot)}
    newest = dict(sorted(records))
    lost: dict[CommitKey, str] = {}
    for shard, counter in parts:
        last = newest.get(shard, -1)
        if (shard, counter) not in records and counter != last + 1:
            others = "later ones are there" if counter < last else "so are those before it"
            lost[shard, counter] = f"its record is missing, and {others}"
    return {key: why for key, why in lost.items() if not record_path(path, *key).exists()}


def in_order(commits: Iterable[Commit]) -> list[Commit]:
    """The commits, oldest first."""
    return sorted(commits, key=lambda commit: (commit.created, commit.shard, commit.counter))


def _read_listed(
    path: Place, listed: list[CommitKey], run_id: str, shard: Shard | None, snapshot: Snapshot | None
) -> tuple[Commit, ...]:
    commits: list[Commit] = []
    replaced: set[CommitKey] = set()
    for key in reversed(listed):  # a commit is replaced by one with a higher counter
        if key not in replaced:
            commit = read_record(path, *key, run_id, snapshot)
            if commit.part:
                require_size(part_path(path, *key), commit.part, snapshot)
            replaced |= {(commit.shard, counter) for counter in commit.replaces}
            commits.append(commit)
    for key, why in lost_records(path, replaced, snapshot).items():
        if shard in (None, key[0]):
            raise damaged_part(part_path(path, *key), why)
    return tuple(in_order(commits))

"""Compaction: merge many small commits of a shard into a few large ones. The run reads the same at every moment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from midsight.buckets.path import Place, fetched, to_place
from midsight.buckets.reading import in_turn
from midsight.errors import CommitError, RunError
from midsight.store.commits import (
    Commit,
    list_commits,
    part_path,
    read_commits,
    record_path,
    remove_commits,
    remove_leftovers,
    remove_replaced,
    size_of_part,
    write_commit,
)
from midsight.store.files import Shard, write_new
from midsight.store.hub import require_writable
from midsight.store.index import extend_index
from midsight.store.lock import hold_shards
from midsight.store.parts import PartDigest, Tails, digest_part, encode_part, read_part
from midsight.store.schema import VECTOR_TYPES, run_schema
from midsight.store.spec import RunSpec, read_spec

TARGET_BYTES = 256 * 2**20
"""Default maximum size of a merged part's rows in memory; the file is smaller."""


@dataclass(frozen=True)
class Compaction:
    """What a compaction did."""

    commits_before: int
    """Commits of the run when it began."""
    commits_after: int
    """Commits of the run when it ended."""
    bytes_before: int
    """Size of the parts when it began."""
    bytes_after: int
    """Size of the parts when it ended."""


@dataclass
class _Group:
    """Consecutive commits of one shard that become one."""

    commits: list[Commit] = field(default_factory=list)
    bytes: int = 0
    failed: set[str] = field(default_factory=set)


def compact(path: str | Place, *, target_bytes: int = TARGET_BYTES) -> Compaction:
    """Merge the commits of each shard of the run folder `path` up to `target_bytes`; no row and no failure changes.

    Takes about three times `target_bytes` of memory. Raises RunError if a shard is being written,
    DamagedRunError if a commit to merge is not what was written, CommitError if the disk refuses.
    What is merged by then stays merged, and the run reads as before.
    """
    require_writable(path)
    path = to_place(path)
    spec = read_spec(path)
    shards = {shard for shard, _ in list_commits(path, ".json")}
    try:
        with hold_shards(path, shards):
            before = read_commits(path, spec.run_id)
            counters = {
                shard: 1 + max(commit.counter for commit in before if commit.shard == shard) for shard in shards
            }
            for shard, counter in counters.items():
                counters[shard] = remove_leftovers(path, shard, counter, spec.run_id)
                remove_replaced(path, shard, before)
            tails = Tails()
            held = [commit for commit in before if commit.shard in shards]  # others were started meanwhile
            for group in _groups(path, held, spec, target_bytes, tails):
                shard = group[0].shard
                _merge(path, spec, group, counters[shard], tails)
                counters[shard] += 1
            extend_index(path)
            after = read_commits(path, spec.run_id)
    except OSError as error:
        raise CommitError(
            f"{path} could not be compacted: {error.strerror or error}; it reads as before, so fix that and run the "
            "same command again."
        ) from error
    return Compaction(len(before), len(after), sum(map(size_of_part, before)), sum(map(size_of_part, after)))


def _groups(
    path: Place, commits: Sequence[Commit], spec: RunSpec, target_bytes: int, tails: Tails
) -> Iterator[list[Commit]]:
    growing: dict[Shard, _Group] = {}
    sizes = in_turn(path, commits, partial(_bytes_in_memory, path, spec, tails), size=lambda _: 0)
    for commit, size in zip(commits, sizes, strict=True):
        failed = {failure.sample_id for failure in commit.failures}
        for shard, group in growing.items():
            # A merged commit has the time of its last one. So a failure must not move past a later
            # failure of the same sample in another shard.
            overtaken = shard != commit.shard and not failed.isdisjoint(group.failed)
            full = shard == commit.shard and group.bytes + size > target_bytes
            if overtaken or full:
                if len(group.commits) > 1:
                    yield group.commits
                growing[shard] = _Group()
        group = growing.setdefault(commit.shard, _Group())
        group.commits.append(commit)
        group.bytes += size
        group.failed |= failed
    yield from (group.commits for group in growing.values() if len(group.commits) > 1)


def _bytes_in_memory(path: Place, spec: RunSpec, tails: Tails, commit: Commit) -> int:
    """Size of the rows of `commit`; texts are read, because a text that repeats is stored only once."""
    if not commit.part:
        return 0
    vector_bytes = sum(spec.vectors.values()) * VECTOR_TYPES[spec.request.store_dtype].bit_width // 8
    others = [name for name in run_schema(spec.columns).names if name not in spec.vectors]
    batches = read_part(part_path(path, *commit.key), commit.part, others, tails=tails)
    return commit.rows * vector_bytes + sum(batch.nbytes for batch in batches)


def _merge(path: Place, spec: RunSpec, group: Sequence[Commit], counter: int, tails: Tails) -> None:
    shard = group[0].shard
    schema = run_schema(spec.columns)

    def read(commit: Commit) -> list[pa.Table]:
        part = commit.part
        return [*read_part(part_path(path, *commit.key), part, schema.names, schema, tails=tails)] if part else []

    each = in_turn(path, group, read, size=size_of_part)
    rows = [batch for batches in each for batch in batches]
    with _removed_unless_committed(path, shard, counter) as file:
        merged = Commit(
            shard,
            counter,
            _write_part(file, pa.concat_tables(rows)) if rows else None,
            tuple(failure for commit in group for failure in commit.failures),
            group[-1].created,
            # Including those that they replace themselves, in case a copy of the run brings old files back.
            tuple(sorted({number for commit in group for number in (commit.counter, *commit.replaces)})),
        )
        write_commit(path, merged, spec.run_id)
    remove_commits(path, [commit.key for commit in group])


@contextmanager
def _removed_unless_committed(path: Place, shard: Shard, counter: int) -> Iterator[Place]:
    """The part of a new commit, which is deleted if an error comes before its record is there."""
    file = part_path(path, shard, counter)
    try:
        yield file
    except BaseException:
        with suppress(OSError):
            if not record_path(path, shard, counter).exists():
                file.unlink(missing_ok=True)
        raise


def _write_part(file: Place, table: pa.Table) -> PartDigest:
    data = encode_part(table)
    digest = digest_part(data)
    write_new(file, data)
    del data
    written = fetched(file)
    with written.open("rb") as stored:
        whole = hashlib.file_digest(stored, "sha256").hexdigest() == digest.sha256
    if not whole or not _holds(written, digest, table):
        raise RunError(f"The merged part {file} does not read back as it was written; check the disk and its memory.")
    return digest


def _holds(file: Place, digest: PartDigest, table: pa.Table) -> bool:
    """Whether the part holds the rows of `table`, bit for bit; they are compared a row group at a time."""
    start = 0
    for batch in read_part(file, digest, table.schema.names):
        if not _bits(batch).equals(_bits(table.slice(start, batch.num_rows))):
            return False
        start += batch.num_rows
    return start == table.num_rows


def _bits(table: pa.Table) -> pa.Table:
    """`table` with floats as integers of the same bits, so that -0.0 differs from 0.0 and NaN equals itself."""
    return pa.table([_array_bits(column.combine_chunks()) for column in table.columns], names=table.schema.names)


def _array_bits(array: pa.Array) -> pa.Array:
    if pa.types.is_list(array.type):
        values = _array_bits(array.values)
        return pa.ListArray.from_arrays(array.offsets, values, mask=array.is_null())
    if pa.types.is_fixed_size_list(array.type):
        return pa.FixedSizeListArray.from_arrays(_array_bits(array.flatten()), array.type.list_size)
    if pa.types.is_floating(array.type):
        return array.view({16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[array.type.bit_width])
    return array

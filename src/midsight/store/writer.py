"""Writing a run: rows are buffered, then committed together, so that a crash costs at most one buffer."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Self

import numpy as np
import pyarrow as pa

from midsight.buckets.path import BucketPath, Place, to_place
from midsight.errors import CommitError, RunError
from midsight.records import Record
from midsight.samples.sample import Failure
from midsight.store.attempts import Attempts, read_suspicions
from midsight.store.commits import (
    Commit,
    part_path,
    record_path,
    remove_leftovers,
    remove_replaced,
    utc_now,
    write_commit,
)
from midsight.store.files import (
    LOCKS,
    PARTS,
    START_LOCK,
    Shard,
    parse_shard_name,
    reporting_disk_errors,
    shard_name,
    validate_shard,
    write_new,
)
from midsight.store.hub import require_writable
from midsight.store.index import INDEX_EVERY, extend_index
from midsight.store.lock import START_WAIT_S, Lock, make_locks, perhaps_held, take_lock, was_replaced
from midsight.store.numbers import numbers_of
from midsight.store.parts import digest_part, encode_part
from midsight.store.place import validate_no_lost_run
from midsight.store.reader import Run, read_commit_records
from midsight.store.rows import require_distinct_rows
from midsight.store.same_spec import require_same_run
from midsight.store.schema import records_to_table
from midsight.store.spec import RunSpec, is_run, read_spec, write_spec

SHORTEST_S = 2.0
"""Minimum time between two commits that divide the rows of one image, in seconds."""
LOOK_S = 10.0
"""Maximum time between two looks whether a commit is overdue although no sample comes, in seconds."""


@dataclass(frozen=True)
class _Sent:
    """The first rows and failures of a buffer as a commit."""

    commit: Commit
    part: pa.Buffer | None
    rows: int
    """How many of the buffer's tables are in the part."""


@dataclass
class _Buffer:
    """The content and the number of the next commit.

    It is replaced as a whole, so an interrupt finds it either not yet committed or already empty.
    """

    counter: int
    rows: list[pa.Table] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    last_image_id: str = ""
    sent: _Sent | None = None
    """What a store may have received already, although it did not say so."""

    @property
    def empty(self) -> bool:
        return not self.rows and not self.failures


class RunWriter:
    """Writes one shard of the run folder `path`; a context manager that resumes what is there.

    Entering creates the folder and its run.json, or compares `spec` with the run.json that is there.
    It also locks the shard. Leaving commits what is buffered, also after an exception, and releases
    the lock. Raises RunError if the run was started differently or another process writes the shard,
    CommitError if the disk refuses a commit.

    Without `reads_other_shards` the caller knows that no sample of this shard is stored in another one, which is
    faster in a run of many shards.
    """

    def __init__(
        self,
        path: str | Place,
        spec: RunSpec,
        *,
        shard: Shard = (0, 1),
        retry_failed: bool = False,
        commit_seconds: float = 60.0,
        commit_bytes: int = 128 * 2**20,
        reads_other_shards: bool = True,
    ) -> None:
        validate_shard(shard)
        require_writable(path)
        self.path = to_place(path)
        """The run folder."""
        self.spec = spec
        """What the run is; after entering, the content of its run.json."""
        self.done: set[str] = set()
        """Ids of the samples that need no more work: stored or failed, by this process or before,
        in any shard that is read. With `retry_failed` earlier failures are not among them."""
        self.failed: set[str] = set()
        """Ids of the samples that failed and have no row, by this process or before, in any shard."""
        self.attempts: Attempts
        """The samples in work, and the suspects of earlier deaths; set on entering."""
        self.lock = RLock()
        """Held while rows are added and committed; whoever adds several that belong together may hold it longer."""
        self._shard = shard
        self._retry_failed = retry_failed
        self._read = shard if not reads_other_shards else None
        self._commit_seconds = commit_seconds
        self._commit_bytes = commit_bytes
        self._buffer = _Buffer(counter=0)
        self._newest = ""
        self._lock: Lock | None = None
        self._left = Event()
        self._watch = Thread(target=self._commit_overdue, daemon=True, name="midsight-commits")

    def __enter__(self) -> Self:
        with reporting_disk_errors(self.path, "opened for writing", RunError):
            (self.path / PARTS).mkdir(parents=True, exist_ok=True)
            make_locks(self.path)
            with take_lock(self.path / LOCKS / START_LOCK, wait_s=START_WAIT_S):
                self._agree_on_spec()
                self._lock = self._lock_shard()
            try:
                self.attempts = Attempts(self.path, self._shard, self._require_lock)
                self._resume()
            except BaseException:
                self._lock.close()
                raise
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        try:
            self.commit()
            if self._read is None or self._shard[0] % INDEX_EVERY == INDEX_EVERY - 1:  # not after every order
                self._extend_index()
        finally:
            try:
                self._watch.join()
                self.attempts.end()
            finally:
                if self._lock is not None:
                    self._lock.close()

    def add(self, record: Record) -> None:
        """Store one extracted sample, committing first if that is due and a new image begins.

        If a commit is overdue by its whole interval, it waits neither for a new image nor for the next sample.

        Raises SampleError if its values cannot be stored: a vector that is not finite or overflows the
        store dtype, or an input column of another type. The run is then as it was, and the caller
        reports the sample with `fail`. Raises RunError if the sample is stored already or its vectors
        are not those of the spec, CommitError if the commit fails.
        """
        row = records_to_table([record], self.spec.columns)
        with self.lock:
            self._refuse_repeat(record.sample_id)
            new_image = record.image_id != self._buffer.last_image_id
            if self._due() and (new_image or self._overdue()):
                self.commit()
            buffer = self._started_buffer()
            buffer.rows.append(row)
            buffer.bytes += row.nbytes
            buffer.last_image_id = record.image_id
            self.done.add(record.sample_id)
            self.failed.discard(record.sample_id)

    def fail(self, failure: Failure) -> None:
        """Store that a sample could not be extracted. Raises RunError as `add` does."""
        with self.lock:
            self._refuse_repeat(failure.sample_id)
            if self._due() and (not self._buffer.rows or self._overdue()):
                self.commit()
            self._started_buffer().failures.append(failure)
            self.done.add(failure.sample_id)
            self.failed.add(failure.sample_id)

    def commit(self) -> None:
        """Make everything added so far durable; does nothing if nothing was added.

        Raises CommitError if the disk refuses. Earlier commits are then as they were, and the rest
        stays buffered.
        """
        with self.lock:
            while not self._buffer.empty:
                if isinstance(self.path, BucketPath):
                    self._send_buffer(self.path)
                else:
                    self._commit_buffer(self.path)

    def _commit_buffer(self, path: Path) -> None:
        buffer = self._buffer
        record = record_path(path, self._shard, buffer.counter)
        with reporting_disk_errors(path, f"written to (commit {buffer.counter})"):
            self._require_lock()
            if record.exists() or record.is_symlink():
                raise self._not_alone()
            sent = self._encoded(buffer)
            if sent.part is not None:
                write_new(part_path(path, *sent.commit.key), sent.part)
            try:
                write_commit(path, sent.commit, self.spec.run_id)
            except BaseException:
                if record.exists():  # only its flushing failed; it is never written again with other rows
                    self._buffer = _Buffer(counter=buffer.counter + 1)
                raise
        self._buffer, self._newest = _Buffer(counter=buffer.counter + 1), sent.commit.created

    def _send_buffer(self, path: BucketPath) -> None:
        """Commit to a bucket. A write whose answer was lost may be done, so it is repeated with the same bytes."""
        buffer = self._buffer
        sent = buffer.sent = buffer.sent or self._encoded(buffer)
        self._require_lock()
        try:
            if sent.part is not None:
                write_new(part_path(path, *sent.commit.key), sent.part)
            write_commit(path, sent.commit, self.spec.run_id)
        except FileExistsError:
            raise self._not_alone() from None
        rows, failures = buffer.rows[sent.rows :], buffer.failures[len(sent.commit.failures) :]
        counter, size = buffer.counter + 1, sum(row.nbytes for row in rows)
        self._buffer = _Buffer(counter, rows, failures, size, last_image_id=buffer.last_image_id)
        self._newest = sent.commit.created
        if counter % INDEX_EVERY == 0:
            self._extend_index()

    def _encoded(self, buffer: _Buffer) -> _Sent:
        part = encode_part(pa.concat_tables(buffer.rows)) if buffer.rows else None
        digest = None if part is None else digest_part(part)
        created = max(utc_now(), self._newest)  # a clock that was set back does not change the order
        commit = Commit(self._shard, buffer.counter, digest, tuple(buffer.failures), created)
        return _Sent(commit, part, len(buffer.rows))

    def _extend_index(self) -> None:
        with suppress(RunError):  # without it, opening the run takes more requests
            extend_index(self.path)

    def _require_lock(self) -> None:
        """Raises CommitError if another process writes this shard too, OSError."""
        if self._lock is not None and was_replaced(self._lock_path(), self._lock):
            raise self._not_alone()

    def _not_alone(self) -> CommitError:
        if isinstance(self.path, BucketPath):
            return CommitError(
                f"{self.path} is written by another process too, because this one was stopped or cut off for longer "
                f"than its lease {self._lock_path()}; it stops without touching what the other one wrote, and the same "
                "command resumes."
            )
        return CommitError(
            f"{self.path} is written by another process too, because the folder or {self._lock_path()} was replaced, "
            "or the file system lost its lock; this process stops without touching what the other one wrote."
        )

    def _commit_overdue(self) -> None:
        """Commits what is overdue while no sample comes, as in a long call of the model."""
        while not self._left.wait(min(max(self._commit_seconds, SHORTEST_S) / 2, LOOK_S)):
            with suppress(CommitError), self.lock:  # the rows stay, and the next commit says why
                if self._overdue():
                    self.commit()

    def _agree_on_spec(self) -> None:
        if is_run(self.path):
            stored = read_spec(self.path)
            require_same_run(self.path, stored, self.spec)
            self.spec = stored
        else:
            validate_no_lost_run(self.path)
            write_spec(self.path, self.spec)

    def _lock_shard(self) -> Lock:
        # Another number of shards divides the dataset differently, so both would write the same samples.
        locks = ((file, parse_shard_name(file.stem)) for file in (self.path / LOCKS).glob("*-of-*.lock"))
        for file in perhaps_held([file for file, name in locks if name is not None and name[1] != self._shard[1]]):
            take_lock(file).close()
        return take_lock(self._lock_path())

    def _lock_path(self) -> Place:
        return self.path / LOCKS / f"{shard_name(self._shard)}.lock"

    def _resume(self) -> None:
        run = read_commit_records(self.path, self._read)
        mine = [commit.counter for commit in run.commits if commit.shard == self._shard]
        self._buffer = _Buffer(counter=max(mine, default=-1) + 1)
        self._newest = max((commit.created for commit in run.commits), default="")
        self._buffer.counter = remove_leftovers(self.path, self._shard, self._buffer.counter, self.spec.run_id)
        remove_replaced(self.path, self._shard, run.commits)
        self.done, self.failed = stored_and_failed(run)
        self.done |= self.failed - (self.failed if self._retry_failed else self.attempts.once_more())

    def _due(self) -> bool:
        waited = time.monotonic() - self._buffer.started >= self._commit_seconds
        return not self._buffer.empty and (waited or self._buffer.bytes >= self._commit_bytes)

    def _overdue(self) -> bool:
        waited = time.monotonic() - self._buffer.started
        return waited >= max(2 * self._commit_seconds, SHORTEST_S) or self._buffer.bytes >= 2 * self._commit_bytes

    def _started_buffer(self) -> _Buffer:
        if self._buffer.empty:
            self._buffer.started = time.monotonic()
        return self._buffer

    def _refuse_repeat(self, sample_id: str) -> None:
        if sample_id in self.done and sample_id not in self.failed:
            raise RunError(
                f"The sample {sample_id!r} is stored in {self.path} already; skip the samples in RunWriter.done."
            )


def samples_done(path: Place, *, shard: Shard, retry_failed: bool) -> tuple[set[str], set[str]]:
    """What RunWriter's `done` and `failed` will hold for the run folder `path`, without writing anything."""
    if not is_run(path):
        return set(), set()
    done, failed = stored_and_failed(read_commit_records(path))
    done |= failed - (failed if retry_failed else read_suspicions(path, shard).once_more())
    return done, failed


def stored_and_failed(run: Run) -> tuple[set[str], set[str]]:
    """The ids of the samples that have a row, and of those that failed and have none.

    Raises DamagedRunError if a row is there twice. Rows are read once, and in stored order, because dataset order would
    hold ten million samples several times.
    """
    stored: set[str] = set()
    indices = [np.empty(0, np.int64)]
    for batch in run.batches(["sample_id", "input_index"]):
        stored.update(batch.column("sample_id").to_pylist())
        indices.append(numbers_of(batch.column("input_index")))
    require_distinct_rows(run.path, run.commits, np.concatenate(indices))
    return stored, {failure.sample_id for commit in run.commits for failure in commit.failures} - stored

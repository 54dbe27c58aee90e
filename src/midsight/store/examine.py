"""What a verification finds in each commit: its part, byte by byte, against its record."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midsight.buckets.path import Place, fetched
from midsight.buckets.reading import in_turn
from midsight.errors import DamagedRunError
from midsight.store.commits import Commit, list_commits, part_path, require_size, size_of_part
from midsight.store.files import RUN_JSON
from midsight.store.parts import PartDigest, damaged_part, other_columns, read_part
from midsight.store.schema import is_vector, run_schema
from midsight.store.spec import RunSpec
from midsight.store.vectors import vectors_of

KEYS = pa.schema([("sample_id", pa.string()), ("input_index", pa.int64())])
"""The columns in which no value of a run is repeated."""


@dataclass(frozen=True)
class Finding:
    """One file that is not as it was written."""

    file: str
    """The bad file, within the run folder."""
    problem: str
    """One sentence: what is wrong, and the remedy."""
    droppable: bool = True
    """Whether deleting the commit fixes it: not for run.json, nor for a file that could not be read, nor for a part
    that is as its record says and whose rows are nowhere else."""
    dropped: bool = False
    """Whether the commit was deleted."""


@dataclass
class Tally:
    """What is collected while commits are examined."""

    findings: dict[str, Finding] = field(default_factory=dict)
    """What is bad, by file."""
    sound: list[Commit] = field(default_factory=list)
    """The commits whose parts are sound."""
    rows: list[pa.Table] = field(default_factory=list)
    """Their KEYS, by sound commit."""
    renamed: set[str] = field(default_factory=set)
    """The names that renamed records were written with."""
    strangers: dict[str, str] = field(default_factory=dict)
    """Problem by file, for whole parts whose columns are not those of run.json."""

    def add(self, file: str, problem: str, *, droppable: bool = True) -> None:
        """Add a finding about `file`, unless there is one."""
        self.findings.setdefault(file, Finding(file, problem, droppable))

    def take(self, other: Tally) -> None:
        """Add what was collected about a further commit."""
        for file, finding in other.findings.items():
            self.findings.setdefault(file, finding)
        self.sound += other.sound
        self.rows += other.rows
        self.strangers |= other.strangers


class _WholeAndWrongError(Exception):
    """A part that is as its record says, and holds what midsight never writes."""


def examine_all(path: Place, spec: RunSpec | None, commits: Sequence[Commit], tally: Tally) -> None:
    """Read the parts of the commits, in a bucket several at a time, and add what is wrong, and their rows."""
    for found in in_turn(path, commits, partial(_examine, path, spec), size=size_of_part):
        tally.take(found)


def _examine(path: Place, spec: RunSpec | None, commit: Commit) -> Tally:
    """What is wrong with the part of a commit, or its rows."""
    tally, rows = Tally(), KEYS.empty_table()
    file = part_path(path, *commit.key)
    # a commit without failures too only takes the place of one that a process in a bucket did not finish
    if not commit.part and commit.failures and file.exists():
        problem = f"The part {file} is there, and its record says that there is none; restore the record from a copy."
        tally.add(within(path, file), problem, droppable=False)
    if commit.part:
        try:
            require_size(file, commit.part)
            held = fetched(file)
            rows = _examine_part(held, commit.part, imported=spec is not None and spec.imported is not None)
            if spec is not None and not (wanted := run_schema(spec.columns)).equals(stored := _read_schema(held)):
                tally.strangers[within(path, file)] = str(other_columns(file, wanted, stored))
        except DamagedRunError as error:
            tally.add(within(path, file), str(error))
            return tally
        except (pa.ArrowException, KeyError) as error:
            tally.add(within(path, file), str(damaged_part(file, f"it cannot be read ({error})")))
            return tally
        except _WholeAndWrongError as error:
            tally.add(within(path, file), str(error), droppable=False)
        except OSError as error:
            problem = f"The part {file} cannot be read: {error.strerror or error}; check the disk and its permissions."
            tally.add(within(path, file), problem, droppable=False)
            return tally
    tally.sound.append(commit)
    tally.rows.append(rows)
    return tally


def blame_strangers(tally: Tally) -> None:
    """Add a finding for run.json if no whole part has its columns, else for the parts that do not have them."""
    if not tally.strangers:
        return
    if len(tally.strangers) == sum(commit.part is not None for commit in tally.sound):
        (problem, *_) = tally.strangers.values()
        tally.add(RUN_JSON, problem, droppable=False)
        return
    for file, problem in tally.strangers.items():
        tally.add(file, problem, droppable=False)


def spare_whole_parts(path: Place, commits: list[Commit], tally: Tally) -> None:
    """Bad parts whose bytes are those of a record are not dropped: they were renamed, or only their record is wrong."""
    written = {commit.part.sha256: commit for commit in commits if commit.part}
    named = {part_path(path, *key) for key in list_commits(path, ".parquet")}
    of_commits = {part_path(path, *commit.key) for commit in commits}
    for file in sorted(named):
        name = within(path, file)
        if (name not in tally.findings and file in of_commits) or (commit := written.get(_sha256(file))) is None:
            continue
        own = part_path(path, *commit.key)
        problem = f"The part {file} holds the bytes of {commit.name}.parquet, so it was renamed; rename it back."
        if own == file:
            problem = tally.findings[name].problem
        elif within(path, own) in tally.findings:
            tally.findings[within(path, own)] = Finding(within(path, own), problem, droppable=False)
        tally.findings[name] = Finding(name, problem, droppable=False)


def _examine_part(file: Place, digest: PartDigest, *, imported: bool) -> pa.Table:
    """The KEYS of the part at `file`. Raises DamagedRunError unless all of it is sound, OSError.

    Of an imported run, a vector that is missing is all NaN.
    """
    with file.open("rb") as stored:
        whole = hashlib.file_digest(stored, "sha256").hexdigest() == digest.sha256
    if not whole:
        _blame_a_column(file, digest)
        raise damaged_part(file, "it does not match its SHA-256")
    schema = _read_schema(file)
    groups: list[pa.Table] = []
    for batch in read_part(file, digest, schema.names):
        for field_ in schema:
            if is_vector(field_) and not _all_finite(vectors_of(batch, field_.name), or_missing=imported):
                raise _WholeAndWrongError(f"The part {file} is as it was written, and its column {field_.name} holds "
                                          "values that are not finite; do not use that column.")  # fmt: skip
        groups.append(pa.table([batch.column(name) for name in KEYS.names], names=KEYS.names))
    return pa.concat_tables([KEYS.empty_table(), *groups])


def _read_schema(file: Place) -> pa.Schema:
    with file.open("rb") as stored:
        return pq.read_schema(stored)


def _all_finite(vectors: np.ndarray, *, or_missing: bool) -> bool:
    finite = np.isfinite(vectors)
    return bool((finite.all(axis=1) | (or_missing & np.isnan(vectors).all(axis=1))).all())


def _blame_a_column(file: Place, digest: PartDigest) -> None:
    """Raise the DamagedRunError that says where the part at `file` is damaged, if that can be found out."""
    for _ in read_part(file, digest, ()):
        break  # the footer is sound, so it can be used to list the columns
    for _ in read_part(file, digest, _read_schema(file).names):
        pass


def _sha256(file: Place) -> str:
    """The SHA-256 of a file, empty if it cannot be read."""
    with suppress(OSError), file.open("rb") as stored:
        return hashlib.file_digest(stored, "sha256").hexdigest()
    return ""


def within(path: Place, file: Place) -> str:
    """The file's path within the run folder `path`, as findings name it."""
    return cast("Path", file).relative_to(cast("Path", path)).as_posix()  # both are on a disk, or in one bucket

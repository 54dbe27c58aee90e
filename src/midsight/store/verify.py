"""Verification: compare every byte of a run with its checksums, find repeated samples and wrong counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midsight.errors import CommitError, DamagedRunError, OtherRunError, RenamedError, RunError
from midsight.store.annotations import damaged_labels
from midsight.store.commits import (
    Commit,
    CommitKey,
    in_order,
    list_commits,
    lost_records,
    part_path,
    read_record,
    record_path,
    remove_commit,
    remove_replaced,
    require_size,
)
from midsight.store.files import PARTS, RUN_JSON, commit_stem, flush_folder, remedy, shard_name
from midsight.store.findings import damaged_findings
from midsight.store.lock import hold_shards
from midsight.store.parts import PartDigest, damaged_part, other_columns, read_part
from midsight.store.schema import is_vector, run_schema
from midsight.store.spec import RunSpec, read_spec
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


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found."""

    path: str
    """The run folder."""
    commits: int
    """Commits whose record is sound."""
    parts: int
    """Parts that were read."""
    rows: int
    """Rows of sound parts."""
    failures: int
    """Samples that failed and have no row."""
    bytes: int
    """Size of the sound parts."""
    absent: int | None
    """Samples of the dataset that are neither stored nor failed; None if run.json does not count them."""
    findings: tuple[Finding, ...]
    """What is bad, by file."""
    notes: tuple[str, ...]
    """What a user should know, although it is not damage."""

    @property
    def sound(self) -> bool:
        """Whether nothing bad is left."""
        return all(finding.dropped for finding in self.findings)


class _WholeAndWrongError(Exception):
    """A part that is as its record says, and holds what midsight never writes."""


@dataclass
class _Tally:
    """What is collected while commits are examined."""

    findings: dict[str, Finding] = field(default_factory=dict)
    sound: list[Commit] = field(default_factory=list)
    rows: list[pa.Table] = field(default_factory=list)
    """Their KEYS, by sound commit."""
    renamed: set[str] = field(default_factory=set)
    """The names that renamed records were written with."""
    strangers: dict[str, str] = field(default_factory=dict)
    """Problem by file, for whole parts whose columns are not those of run.json."""

    def add(self, file: str, problem: str, *, droppable: bool = True) -> None:
        self.findings.setdefault(file, Finding(file, problem, droppable))


def verify_run(path: str | Path) -> VerifyReport:
    """Read everything in the run folder `path` and compare it with what was written; changes nothing.

    Raises MidsightError if `path` is not a run folder, RunError if its format is newer than this
    midsight or it is compacted at the same time.
    """
    path = Path(path)
    listed = list_commits(path, ".json")
    report, _ = _verify(path, listed)
    if report.findings and not set(listed) <= set(list_commits(path, ".json")):
        raise RunError(f"{path} was compacted or repaired while it was verified; verify it again.")
    return report


def drop_bad(path: str | Path) -> VerifyReport:
    """Verify as `verify_run` does and delete bad commits, so that the next start extracts their samples again.

    Holds the locks of all shards. Raises RunError if one of them is being written, CommitError if the
    disk refuses.
    """
    path = Path(path)
    read_spec_or_none(path)
    shards = {shard for suffix in (".json", ".parquet") for shard, _ in list_commits(path, suffix)}
    try:
        with hold_shards(path, shards) if shards else nullcontext():
            report, commits = _verify(path, list_commits(path, ".json"))
            bad = {Path(finding.file).stem for finding in report.findings if finding.droppable}
            if bad:
                for shard in shards:
                    # First, or deleting a merged commit would bring back files of the commits in it.
                    remove_replaced(path, shard, commits)
                for key in {*list_commits(path, ".json"), *list_commits(path, ".parquet")}:
                    if commit_stem(*key) in bad:
                        remove_commit(path, *key)
                # The part that a dead writer left may no longer be the next after the newest record.
                kept = {Path(finding.file).stem for finding in report.findings if not finding.droppable}
                for key in {*list_commits(path, ".parquet")} - {*list_commits(path, ".json")}:
                    if commit_stem(*key) not in kept:
                        remove_commit(path, *key)
                flush_folder(path / PARTS)
    except OSError as error:
        raise CommitError(
            f"{path} could not be repaired: {error.strerror or error}; fix that and run the same command again."
        ) from error
    return replace(report, findings=tuple(replace(finding, dropped=finding.droppable) for finding in report.findings))


def read_spec_or_none(path: Path) -> RunSpec | None:
    """The spec of the run folder `path`, None if its run.json is damaged. Otherwise raises as `read_spec` does."""
    try:
        return read_spec(path)
    except DamagedRunError:
        return None


def _verify(path: Path, listed: list[CommitKey]) -> tuple[VerifyReport, list[Commit]]:
    tally = _Tally()
    spec = read_spec_or_none(path)
    if spec is None:
        tally.add(RUN_JSON, _problem_of_spec(path), droppable=False)
    elif other := _run_of_most_commits(path, listed, spec.run_id):
        problem = f"is of run {spec.run_id}, and the commits here are of run {other}; {remedy(path / RUN_JSON)}"
        tally.add(RUN_JSON, f"{path / RUN_JSON} {problem}.", droppable=False)
        spec = None
    if spec is not None:
        for file, problem in (*damaged_labels(path, spec.run_id), *damaged_findings(path, spec.run_id)):
            tally.add(file, problem, droppable=False)
    commits, replaced = _records(path, listed, spec, tally)
    for commit in commits:
        _examine(path, spec, commit, tally)
    _blame_strangers(tally)
    _spare_whole_parts(path, commits, tally)
    lost, notes = _strays(path, listed, replaced)
    for key, why in lost.items():
        file = part_path(path, *key)
        # The part of a renamed record only needs its record back.
        tally.add(_within(path, file), str(damaged_part(file, why)), droppable=file.stem not in tally.renamed)
    _find_repeats(path, tally, "sample_id", "sample {!r}")
    _find_repeats(path, tally, "input_index", "row of the dataset, {},")
    good = [c for c in tally.sound if _within(path, part_path(path, *c.key)) not in tally.findings]
    rows = sum(commit.rows for commit in good)
    failures = _failures(tally)
    absent = None
    if spec is not None and spec.dataset.rows is not None:
        absent = max(0, spec.dataset.rows - rows - failures)
        if absent:
            notes.append(
                f"{absent} of the dataset's {spec.dataset.rows} samples are neither stored nor failed: not done "
                "yet, or lost; the same extract command extracts them."
            )
    report = VerifyReport(
        path=str(path),
        commits=len(commits),
        parts=sum(commit.part is not None for commit in commits),
        rows=rows,
        failures=failures,
        bytes=sum(commit.part.bytes for commit in good if commit.part),
        absent=absent,
        findings=tuple(tally.findings[file] for file in sorted(tally.findings)),
        notes=tuple(notes),
    )
    return report, commits


def _run_of_most_commits(path: Path, listed: list[CommitKey], run_id: str) -> str | None:
    """The run of most readable records, if fewer are of `run_id`; otherwise None."""
    found: Counter[str] = Counter()
    for key in listed:
        try:
            read_record(path, *key, run_id)
            found[run_id] += 1
        except OtherRunError as error:
            found[error.run_id] += 1
        except DamagedRunError:
            continue
    most = max(found.values(), default=0)
    return None if found[run_id] == most else found.most_common(1)[0][0]


def _problem_of_spec(path: Path) -> str:
    try:
        read_spec(path)
    except DamagedRunError as error:
        return str(error)
    return f"{path / RUN_JSON} changed while it was read; verify again."


def _records(
    path: Path, listed: list[CommitKey], spec: RunSpec | None, tally: _Tally
) -> tuple[list[Commit], set[CommitKey]]:
    """The commits with sound records, oldest first, and the keys of the commits that they replace."""
    commits: list[Commit] = []
    replaced: set[CommitKey] = set()
    for key in reversed(listed):
        if key in replaced:
            continue
        file = record_path(path, *key)
        try:
            commit = read_record(path, *key, spec.run_id if spec else None)
        except OtherRunError as error:
            problem = (
                f"The commit record {file} was copied from run {error.run_id}; move it and its part back there, or "
                "delete both."
            )
            tally.add(_within(path, file), problem, droppable=False)
            continue
        except RenamedError as error:
            tally.renamed.add(error.name)
            tally.add(_within(path, file), str(error), droppable=False)
            continue
        except DamagedRunError as error:
            unreadable = isinstance(error.__cause__, OSError)
            tally.add(_within(path, file), str(error), droppable=not unreadable)
            continue
        replaced |= {(commit.shard, counter) for counter in commit.replaces}
        commits.append(commit)
    return in_order(commits), replaced


def _examine(path: Path, spec: RunSpec | None, commit: Commit, tally: _Tally) -> None:
    rows = KEYS.empty_table()
    file = part_path(path, *commit.key)
    if not commit.part and file.exists():
        problem = f"The part {file} is there, and its record says that there is none; restore the record from a copy."
        tally.add(_within(path, file), problem, droppable=False)
    if commit.part:
        try:
            require_size(file, commit.part)
            rows = _examine_part(file, commit.part, imported=spec is not None and spec.imported is not None)
            if spec is not None and not (wanted := run_schema(spec.columns)).equals(stored := pq.read_schema(file)):
                tally.strangers[_within(path, file)] = str(other_columns(file, wanted, stored))
        except DamagedRunError as error:
            tally.add(_within(path, file), str(error))
            return
        except (pa.ArrowException, KeyError) as error:
            tally.add(_within(path, file), str(damaged_part(file, f"it cannot be read ({error})")))
            return
        except _WholeAndWrongError as error:
            tally.add(_within(path, file), str(error), droppable=False)
        except OSError as error:
            problem = f"The part {file} cannot be read: {error.strerror or error}; check the disk and its permissions."
            tally.add(_within(path, file), problem, droppable=False)
            return
    tally.sound.append(commit)
    tally.rows.append(rows)


def _spare_whole_parts(path: Path, commits: list[Commit], tally: _Tally) -> None:
    """Bad parts whose bytes are those of a record are not dropped: they were renamed, or only their record is wrong."""
    written = {commit.part.sha256: commit for commit in commits if commit.part}
    named = {part_path(path, *key) for key in list_commits(path, ".parquet")}
    of_commits = {part_path(path, *commit.key) for commit in commits}
    for file in sorted(named):
        name = _within(path, file)
        if (name not in tally.findings and file in of_commits) or (commit := written.get(_sha256(file))) is None:
            continue
        own = part_path(path, *commit.key)
        problem = f"The part {file} holds the bytes of {commit.name}.parquet, so it was renamed; rename it back."
        if own == file:
            problem = tally.findings[name].problem
        elif _within(path, own) in tally.findings:
            tally.findings[_within(path, own)] = Finding(_within(path, own), problem, droppable=False)
        tally.findings[name] = Finding(name, problem, droppable=False)


def _sha256(file: Path) -> str:
    """The SHA-256 of a file, empty if it cannot be read."""
    with suppress(OSError), file.open("rb") as stored:
        return hashlib.file_digest(stored, "sha256").hexdigest()
    return ""


def _blame_strangers(tally: _Tally) -> None:
    """Add a finding for run.json if no whole part has its columns, else for the parts that do not have them."""
    if not tally.strangers:
        return
    if len(tally.strangers) == sum(commit.part is not None for commit in tally.sound):
        (problem, *_) = tally.strangers.values()
        tally.add(RUN_JSON, problem, droppable=False)
        return
    for file, problem in tally.strangers.items():
        tally.add(file, problem, droppable=False)


def _examine_part(file: Path, digest: PartDigest, *, imported: bool) -> pa.Table:
    """The KEYS of the part at `file`. Raises DamagedRunError unless all of it is sound, OSError.

    Of an imported run, a vector that is missing is all NaN.
    """
    with file.open("rb") as stored:
        whole = hashlib.file_digest(stored, "sha256").hexdigest() == digest.sha256
    if not whole:
        _blame_a_column(file, digest)
        raise damaged_part(file, "it does not match its SHA-256")
    schema = pq.read_schema(file)
    groups: list[pa.Table] = []
    for batch in read_part(file, digest, schema.names):
        for field_ in schema:
            if is_vector(field_) and not _all_finite(vectors_of(batch, field_.name), or_missing=imported):
                raise _WholeAndWrongError(f"The part {file} is as it was written, and its column {field_.name} holds "
                                          "values that are not finite; do not use that column.")  # fmt: skip
        groups.append(pa.table([batch.column(name) for name in KEYS.names], names=KEYS.names))
    return pa.concat_tables([KEYS.empty_table(), *groups])


def _all_finite(vectors: np.ndarray, *, or_missing: bool) -> bool:
    finite = np.isfinite(vectors)
    return bool((finite.all(axis=1) | (or_missing & np.isnan(vectors).all(axis=1))).all())


def _blame_a_column(file: Path, digest: PartDigest) -> None:
    """Raise the DamagedRunError that says where the part at `file` is damaged, if that can be found out."""
    for _ in read_part(file, digest, ()):
        break  # the footer is sound, so it can be used to list the columns
    for _ in read_part(file, digest, pq.read_schema(file).names):
        pass


def _strays(path: Path, listed: list[CommitKey], replaced: set[CommitKey]) -> tuple[dict[CommitKey, str], list[str]]:
    """Parts that lost their record, each with the evidence, and notes on other leftovers and gaps."""
    newest = dict(listed)
    parts = list_commits(path, ".parquet")
    bare = [key for key in parts if key not in {*listed, *replaced} and not record_path(path, *key).exists()]
    lost = lost_records(path, replaced)
    notes = [
        f"{_within(path, part_path(path, *key))} is not committed: a writer died there or is still running; the next "
        "start deletes it and extracts its samples again."
        for key in bare
        if key not in lost
    ]
    if left := replaced & {*parts, *listed}:
        notes.append(f"{len(left)} commits that were merged are still there; the next start or compact deletes them.")
    known = {*listed, *parts, *replaced}
    for shard in sorted(newest):
        missing = _gaps([number for of, number in known if of == shard and number <= newest[shard]])
        if missing:
            notes.append(
                f"{sum(map(len, missing))} commits of shard {shard_name(shard)} are not there ({_listed(missing)}): "
                "dropped, or lost."
            )
    return lost, notes


def _find_repeats(path: Path, tally: _Tally, key: str, what: str) -> None:
    """Add a finding for every part with a value of the column `key` that this part or an earlier one holds already.

    `what` names the value in the finding, with `{}` or `{!r}` in its place.
    """
    commits = [number for number, rows in enumerate(tally.rows) for _ in rows.column(key).chunks]
    chunks = [chunk for rows in tally.rows for chunk in rows.column(key).chunks]
    counts = pa.chunked_array(chunks, KEYS.field(key).type).value_counts()
    often = counts.field("counts").to_numpy() > 1
    if not often.any():
        return
    repeated = {*counts.field("values").filter(pa.array(often)).to_pylist()}
    redundant = _redundant(tally)
    first: dict[str | int, Commit] = {}
    for number, chunk in zip(commits, chunks, strict=True):
        commit = tally.sound[number]
        for value in [value for value in chunk.to_pylist() if value in repeated]:
            if value not in first:
                first[value] = commit
                continue
            file = part_path(path, *commit.key)
            why = f"its {what.format(value)} is in {first[value].name} already"
            tally.add(_within(path, file), str(damaged_part(file, why)), droppable=number in redundant)


def _redundant(tally: _Tally) -> set[int]:
    """The sound commits, by number, whose rows of the dataset are all in earlier ones, so that none is lost."""
    kept: set[int] = set()
    redundant: set[int] = set()
    for number, rows in enumerate(tally.rows):
        indices = {*rows.column("input_index").to_pylist()}
        if indices <= kept:
            redundant.add(number)
        kept |= indices
    return redundant


def _failures(tally: _Tally) -> int:
    failed = {failure.sample_id for commit in tally.sound for failure in commit.failures}
    for rows in tally.rows if failed else ():
        failed.difference_update(rows.column("sample_id").to_pylist())
    return len(failed)


def _gaps(counters: list[int]) -> list[range]:
    """The counters that are missing before each of these."""
    ordered = sorted(counters)
    gaps = (range(before + 1, after) for before, after in pairwise([-1, *ordered]))
    return [gap for gap in gaps if gap]


def _listed(gaps: list[range]) -> str:
    shown = [str(gap.start) if len(gap) == 1 else f"{gap.start} to {gap.stop - 1}" for gap in gaps[:8]]
    return ", ".join(shown) + (", ..." if len(gaps) > 8 else "")


def _within(path: Path, file: Path) -> str:
    return file.relative_to(path).as_posix()

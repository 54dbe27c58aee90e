"""Verification: compare every byte of a run with its checksums, find repeated samples and wrong counts."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from midsight.buckets.path import Place, to_place
from midsight.errors import CommitError, DamagedRunError, OtherRunError, RenamedError, RunError, counted
from midsight.store.across_commits import count_failures, find_repeats, find_strays
from midsight.store.annotations import damaged_labels
from midsight.store.commits import (
    Commit,
    CommitKey,
    in_order,
    list_commits,
    part_path,
    read_record,
    record_path,
    remove_commits,
    remove_replaced,
)
from midsight.store.examine import Finding, Tally, blame_strangers, examine_all, spare_whole_parts, within
from midsight.store.files import RUN_JSON, commit_stem, remedy
from midsight.store.findings import damaged_findings
from midsight.store.hub import download_run, is_hub_address, parse_address, require_writable
from midsight.store.index import Snapshot, extend_index, take_snapshot
from midsight.store.lock import hold_shards
from midsight.store.parts import damaged_part
from midsight.store.spec import RunSpec, read_spec


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


def verify_run(path: str | Place) -> VerifyReport:
    """Read everything in the run folder `path` and compare it with what was written; changes nothing.

    Raises MidsightError if `path` is not a run folder, RunError if its format is newer than this
    midsight or it is compacted at the same time.
    """
    path = download_run(parse_address(str(path))) if is_hub_address(path) else to_place(path)
    listed = list_commits(path, ".json")
    report, _ = _verify(path, listed)
    if report.findings and not set(listed) <= set(list_commits(path, ".json")):
        raise RunError(f"{path} was compacted or repaired while it was verified; verify it again.")
    return report


def drop_bad(path: str | Place) -> VerifyReport:
    """Verify as `verify_run` does and delete bad commits, so that the next start extracts their samples again.

    Holds the locks of all shards. Raises RunError if one of them is being written, CommitError if the
    disk refuses.
    """
    require_writable(path)
    path = to_place(path)
    read_spec_or_none(path)
    shards = {shard for suffix in (".json", ".parquet") for shard, _ in list_commits(path, suffix)}
    try:
        with hold_shards(path, shards) if shards else nullcontext():
            report, commits = _verify(path, list_commits(path, ".json"))
            bad = {PurePosixPath(finding.file).stem for finding in report.findings if finding.droppable}
            if bad:
                for shard in shards:
                    # First, or deleting a merged commit would bring back files of the commits in it.
                    remove_replaced(path, shard, commits)
                # A shard that was started meanwhile is not held, and may be about to write the record of its part.
                there = {*list_commits(path, ".json"), *list_commits(path, ".parquet")}
                remove_commits(path, [key for key in there if key[0] in shards and commit_stem(*key) in bad])
                # The part that a dead writer left may no longer be the next after the newest record.
                kept = {PurePosixPath(finding.file).stem for finding in report.findings if not finding.droppable}
                bare = {*list_commits(path, ".parquet")} - {*list_commits(path, ".json")}
                remove_commits(path, [key for key in bare if key[0] in shards and commit_stem(*key) not in kept])
                extend_index(path)
    except OSError as error:
        raise CommitError(
            f"{path} could not be repaired: {error.strerror or error}; fix that and run the same command again."
        ) from error
    return replace(report, findings=tuple(replace(finding, dropped=finding.droppable) for finding in report.findings))


def read_spec_or_none(path: Place) -> RunSpec | None:
    """The spec of the run folder `path`, None if its run.json is damaged. Otherwise raises as `read_spec` does."""
    try:
        return read_spec(path)
    except DamagedRunError:
        return None


def _verify(path: Place, listed: list[CommitKey]) -> tuple[VerifyReport, list[Commit]]:
    tally = Tally()
    snapshot = take_snapshot(path, indexed=False)
    spec = read_spec_or_none(path)
    if spec is None:
        tally.add(RUN_JSON, _problem_of_spec(path), droppable=False)
    elif other := _run_of_most_commits(path, listed, spec.run_id, snapshot):
        problem = f"is of run {spec.run_id}, and the commits here are of run {other}; {remedy(path / RUN_JSON)}"
        tally.add(RUN_JSON, f"{path / RUN_JSON} {problem}.", droppable=False)
        spec = None
    if spec is not None:
        for file, problem in (*damaged_labels(path, spec.run_id), *damaged_findings(path, spec.run_id)):
            tally.add(file, problem, droppable=False)
    commits, replaced = _records(path, listed, spec, tally, snapshot)
    examine_all(path, spec, commits, tally)
    blame_strangers(tally)
    spare_whole_parts(path, commits, tally)
    lost, notes = find_strays(path, listed, replaced)
    for key, why in lost.items():
        file = part_path(path, *key)
        # The part of a renamed record only needs its record back.
        tally.add(within(path, file), str(damaged_part(file, why)), droppable=file.stem not in tally.renamed)
    find_repeats(path, tally, "sample_id", "sample {!r}")
    find_repeats(path, tally, "input_index", "row of the dataset, {},")
    good = [c for c in tally.sound if within(path, part_path(path, *c.key)) not in tally.findings]
    rows = sum(commit.rows for commit in good)
    failures = count_failures(tally)
    absent = None
    if spec is not None and spec.dataset.rows is not None:
        absent = max(0, spec.dataset.rows - rows - failures)
        if absent:
            notes.append(
                f"{absent:,} of the dataset's {counted(spec.dataset.rows, 'sample')} {'is' if absent == 1 else 'are'} "
                "neither stored nor failed: not done yet, or lost; the same extract command extracts what is missing."
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


def _run_of_most_commits(path: Place, listed: list[CommitKey], run_id: str, snapshot: Snapshot | None) -> str | None:
    """The run of most readable records, if fewer are of `run_id`; otherwise None."""
    found: Counter[str] = Counter()
    for key in listed:
        try:
            read_record(path, *key, run_id, snapshot)
            found[run_id] += 1
        except OtherRunError as error:
            found[error.run_id] += 1
        except DamagedRunError:
            continue
    most = max(found.values(), default=0)
    return None if found[run_id] == most else found.most_common(1)[0][0]


def _problem_of_spec(path: Place) -> str:
    try:
        read_spec(path)
    except DamagedRunError as error:
        return str(error)
    return f"{path / RUN_JSON} changed while it was read; verify again."


def _records(
    path: Place, listed: list[CommitKey], spec: RunSpec | None, tally: Tally, snapshot: Snapshot | None
) -> tuple[list[Commit], set[CommitKey]]:
    """The commits with sound records, oldest first, and the keys of the commits that they replace."""
    commits: list[Commit] = []
    replaced: set[CommitKey] = set()
    for key in reversed(listed):
        if key in replaced:
            continue
        file = record_path(path, *key)
        try:
            commit = read_record(path, *key, spec.run_id if spec else None, snapshot)
        except OtherRunError as error:
            problem = (
                f"The commit record {file} was copied from run {error.run_id}; move it and its part back there, or "
                "delete both."
            )
            tally.add(within(path, file), problem, droppable=False)
            continue
        except RenamedError as error:
            tally.renamed.add(error.name)
            tally.add(within(path, file), str(error), droppable=False)
            continue
        except DamagedRunError as error:
            unreadable = isinstance(error.__cause__, OSError)
            tally.add(within(path, file), str(error), droppable=not unreadable)
            continue
        replaced |= {(commit.shard, counter) for counter in commit.replaces}
        commits.append(commit)
    return in_order(commits), replaced

"""Damage: flipped bits, truncated and missing files. Each is found, and none is read as data."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from faults.content import Content, content_of
from faults.experiment import Experiment, Outcome, attempts, demand, scratch
from midsight.errors import RunError
from midsight.store import RunWriter
from midsight.store.compact import compact
from midsight.store.verify import verify_run
from store.made_up import files_of, make_failure, make_record, make_spec

GROUP = "Damaged"
COMMITS = 6
ROWS = 3 * COMMITS

Damage = Callable[[Path, np.random.Generator], Path]
"""Damages a run and tells which of its files."""


def write_run(path: Path, *, compacted: bool) -> None:
    """Six commits of one image each and a failure; compacted, three of them in one and three after it."""
    for half in (range(ROWS // 2), range(ROWS // 2, ROWS)):
        with RunWriter(path, make_spec(dataset={"rows": ROWS + 1}), commit_seconds=0) as writer:
            for i in half:
                writer.add(make_record(i))
            if half.stop == ROWS:
                writer.fail(make_failure(ROWS))
        if compacted and half.start == 0:
            compact(path)


def flip_a_bit(path: Path, random: np.random.Generator) -> Path:
    """One bit, any of all the files' bits alike."""
    files = all_files(path)
    sizes = np.array([file.stat().st_size for file in files])
    position = int(random.integers(sizes.sum()))
    number = int(np.searchsorted(np.cumsum(sizes), position, side="right"))
    data = bytearray(files[number].read_bytes())
    data[position - int(sizes[:number].sum())] ^= 1 << int(random.integers(8))
    files[number].write_bytes(data)
    return files[number]


def flip_a_bit_of_json(path: Path, random: np.random.Generator) -> Path:
    """One bit of run.json or of a commit record."""
    file = choose([path / "run.json", *files_of(path, ".json")], random)
    data = bytearray(file.read_bytes())
    data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    file.write_bytes(data)
    return file


def truncate(path: Path, random: np.random.Generator) -> Path:
    """Any file, after any byte but the last."""
    file = choose(all_files(path), random)
    data = file.read_bytes()
    file.write_bytes(data[: int(random.integers(len(data) - 1))])
    return file


def remove_a_part(path: Path, random: np.random.Generator) -> Path:
    """Any part."""
    file = choose(files_of(path, ".parquet"), random)
    file.unlink()
    return file


def remove_a_record(path: Path, random: np.random.Generator) -> Path:
    """Any record but the last; the part is then what is bad."""
    file = choose(files_of(path, ".json")[:-1], random)
    file.unlink()
    return file.with_suffix(".parquet")


def is_found(damage: Damage) -> Callable[[int, int], Outcome]:
    """Verification names the damaged file and no other; reading refuses, or returns what was written."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with scratch() as runs:
            write_run(runs / "plain", compacted=False)
            write_run(runs / "compacted", compacted=True)

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                run = shutil.copytree(runs / ("compacted" if number % 2 else "plain"), folder / "run")
                file = damage(run, random)
                name = file.relative_to(run).as_posix()
                findings = verify_run(run).findings
                demand([finding.file for finding in findings] == [name], f"of damage in {name} verify finds {findings}")
                demand(str(file) in findings[0].problem, f"verify says {findings[0].problem}")
                refused = is_refused(run, file)
                # Four bytes at a part's start are no part of any page, and no reader uses them.
                demand(refused or damage is flip_a_bit, f"a run with damage in {name} is read")
                return {"refused by readers too": refused}

            return attempts(count, seed, attempt)

    return run_experiment


def lost_last_record(count: int, seed: int) -> Outcome:
    """The record of a merged commit that replaced all others; it is not taken for a crash."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        write_run(folder, compacted=False)
        compact(folder)
        (record,) = files_of(folder, ".json")
        record.unlink()
        (finding,) = verify_run(folder).findings
        demand(finding.file == f"parts/{record.stem}.parquet", f"verify finds {finding}")
        demand(is_refused(folder, record), "the run is read as if nothing had been stored")
        return {}

    return attempts(count, seed, attempt)


def last_record_of_many(count: int, seed: int) -> Outcome:
    """The record of the last commit: as after a crash its rows are gone, no other is, and verify counts them."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        write_run(folder, compacted=number % 2 == 1)
        record = files_of(folder, ".json")[-1]
        record.unlink()
        report = verify_run(folder)
        whole, left = whole_run(), content_of(folder)
        demand(left.rows.items() < whole.rows.items(), "a row is not as it was written")
        demand(len(left.rows) == ROWS - 3, f"{len(left.rows)} rows are left")
        demand(report.absent == 4, f"verify counts {report.absent} samples that are not there")
        demand(f"parts/{record.stem}.parquet is not committed" in report.notes[0], f"verify notes {report.notes}")
        return {}

    return attempts(count, seed, attempt)


def is_refused(path: Path, file: Path) -> bool:
    """Whether a reader raises, naming the commit of `file`; otherwise demands that it reads what was written."""
    try:
        found = content_of(path)
    except RunError as error:
        demand(file.stem in str(error), f"damage in {file} is refused with {error}")
        return True
    demand(found == whole_run(), "damage is read as data")
    return False


@functools.cache
def whole_run() -> Content:
    """What the undamaged run reads as."""
    with scratch() as folder:
        write_run(folder, compacted=False)
        return content_of(folder)


def all_files(path: Path) -> list[Path]:
    """run.json, parts and records."""
    return [path / "run.json", *files_of(path, ".parquet"), *files_of(path, ".json")]


def choose(files: list[Path], random: np.random.Generator) -> Path:
    """Any of the files."""
    return files[int(random.integers(len(files)))]


EXPERIMENTS = (
    Experiment(GROUP, "one flipped bit, anywhere", is_found(flip_a_bit), 100, 100),
    Experiment(GROUP, "one flipped bit of run.json or a record", is_found(flip_a_bit_of_json), 100, 100),
    Experiment(GROUP, "a truncated file", is_found(truncate), 50, 50),
    Experiment(GROUP, "a missing part", is_found(remove_a_part), 10, 3),
    Experiment(GROUP, "a missing record, not the last", is_found(remove_a_record), 10, 3),
    Experiment(GROUP, "the last commit's record missing: its samples count as not done", last_record_of_many, 10, 3),
    Experiment(GROUP, "the only record of a compacted run missing", lost_last_record, 10, 3),
)

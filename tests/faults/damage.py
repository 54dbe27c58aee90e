"""Damage: flipped bits, truncated and missing files. All of it is found, and none of it is read as data."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from faults.content import Content, content_of
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from midsight.errors import RunError
from midsight.store import RunWriter
from midsight.store.compact import compact
from midsight.store.verify import verify_run
from support.made_up import files_of, make_dataset_spec, make_failure, make_record, make_spec

GROUP = "Damaged"
COMMITS = 6
ROWS = 3 * COMMITS

Damage = Callable[[Path, np.random.Generator], Path]
"""Damages a run and returns the damaged file."""


def write_run(path: Path, *, compacted: bool) -> None:
    """Writes six commits, one image each, and a failure; with `compacted` the first three become one commit."""
    spec = make_spec(dataset=make_dataset_spec(rows=ROWS + 1))
    for half in (range(ROWS // 2), range(ROWS // 2, ROWS)):
        with RunWriter(path, spec, commit_seconds=0) as writer:
            for i in half:
                writer.add(make_record(i))
            if half.stop == ROWS:
                writer.fail(make_failure(ROWS))
        if compacted and half.start == 0:
            compact(path)


def flip_a_bit(path: Path, random: np.random.Generator) -> Path:
    """Flips one bit anywhere in the files; every bit is equally likely."""
    files = all_files(path)
    sizes = np.array([file.stat().st_size for file in files])
    position = int(random.integers(sizes.sum()))
    number = int(np.searchsorted(np.cumsum(sizes), position, side="right"))
    data = bytearray(files[number].read_bytes())
    data[position - int(sizes[:number].sum())] ^= 1 << int(random.integers(8))
    files[number].write_bytes(data)
    return files[number]


def flip_a_bit_of_json(path: Path, random: np.random.Generator) -> Path:
    """Flips one bit of run.json or of a commit record."""
    file = choose([path / "run.json", *files_of(path, ".json")], random)
    data = bytearray(file.read_bytes())
    data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    file.write_bytes(data)
    return file


def truncate(path: Path, random: np.random.Generator) -> Path:
    """Truncates any file, after any byte but the last."""
    file = choose(all_files(path), random)
    data = file.read_bytes()
    file.write_bytes(data[: int(random.integers(len(data) - 1))])
    return file


def remove_a_part(path: Path, random: np.random.Generator) -> Path:
    """Removes any part."""
    file = choose(files_of(path, ".parquet"), random)
    file.unlink()
    return file


def remove_a_record(path: Path, random: np.random.Generator) -> Path:
    """Removes any record but the last one, and returns its part: verification reports that."""
    file = choose(files_of(path, ".json")[:-1], random)
    file.unlink()
    return file.with_suffix(".parquet")


def is_found(damage: Damage) -> Callable[[int, int], Outcome]:
    """Verification names the damaged file and no other. Readers refuse the run, or return the original data."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with scratch() as runs:
            write_run(runs / "plain", compacted=False)
            write_run(runs / "compacted", compacted=True)

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                run = shutil.copytree(runs / ("compacted" if number % 2 else "plain"), folder / "run")
                file = damage(run, random)
                name = file.relative_to(run).as_posix()
                findings = verify_run(run).findings
                require(
                    [finding.file for finding in findings] == [name], f"after damage in {name}, verify finds {findings}"
                )
                require(str(file) in findings[0].problem, f"verify says {findings[0].problem}")
                refused = is_refused(run, file)
                # No reader uses the four bytes at the start of a part, which belong to no page.
                require(refused or damage is flip_a_bit, f"a run with damage in {name} is read as good")
                return {"also refused by readers": refused}

            return attempts(count, seed, attempt)

    return run_experiment


def lost_last_record(count: int, seed: int) -> Outcome:
    """Removes the record of a merged commit that replaced all others; this does not look like a crash."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        write_run(folder, compacted=False)
        compact(folder)
        (record,) = files_of(folder, ".json")
        record.unlink()
        (finding,) = verify_run(folder).findings
        require(finding.file == f"parts/{record.stem}.parquet", f"verify finds {finding}")
        require(is_refused(folder, record), "the run reads as empty")
        return {}

    return attempts(count, seed, attempt)


def last_record_of_many(count: int, seed: int) -> Outcome:
    """Removes the record of the last commit. As after a crash, only its rows are gone, and verify counts them."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        write_run(folder, compacted=number % 2 == 1)
        record = files_of(folder, ".json")[-1]
        record.unlink()
        report = verify_run(folder)
        whole, left = whole_run(), content_of(folder)
        require(left.rows.items() < whole.rows.items(), "a row differs from what was written")
        require(len(left.rows) == ROWS - 3, f"{len(left.rows)} rows are left")
        require(report.absent == 4, f"verify counts {report.absent} absent samples")
        require(f"parts/{record.stem}.parquet is not committed" in report.notes[0], f"verify notes {report.notes}")
        return {}

    return attempts(count, seed, attempt)


def is_refused(path: Path, file: Path) -> bool:
    """Whether readers refuse the run and name the commit of `file`; if not, they must return the original data."""
    try:
        found = content_of(path)
    except RunError as error:
        require(file.stem in str(error), f"damage in {file} is refused with {error}")
        return True
    require(found == whole_run(), "damage is read as data")
    return False


@functools.cache
def whole_run() -> Content:
    """The content of the undamaged run."""
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

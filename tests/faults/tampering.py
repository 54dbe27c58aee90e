"""Mix-ups and tampering: files renamed, copied from other runs, or written anew with a correct seal.

Whatever was done, the run is refused or reads as before, and `verify --drop-bad` deletes no row that is nowhere else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from faults.content import Content, content_of
from faults.damage import write_run
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from midsight.errors import MidsightError
from midsight.store import RunWriter
from midsight.store.files import write_sealed_json
from midsight.store.verify import drop_bad, verify_run
from support.made_up import make_record, make_spec

GROUP = "Mixed up"
LONGEST_S = 20
DEEP = "[" * 500 + "]" * 500
TOO_DEEP = "[" * 200_000
HUGE = 10**30
"""No machine has that much of anything."""

Tamper = Callable[[Path, Path], None]
"""Changes a run; the second folder is another run."""


def rename(old: str, new: str, *suffixes: str) -> Tamper:
    """Renames the record, the part or both of a commit."""

    def tamper(run: Path, _: Path) -> None:
        for suffix in suffixes or BOTH:
            named(run, old, suffix).rename(named(run, new, suffix))

    return tamper


def copy(old: str, new: str, *suffixes: str) -> Tamper:
    """Copies the record, the part or both of a commit within the run."""
    return lambda run, _: take(old, new, *suffixes)(run, run)


def take(old: str, new: str, *suffixes: str) -> Tamper:
    """Copies the record, the part or both of a commit of another run."""

    def tamper(run: Path, other: Path) -> None:
        for suffix in suffixes or BOTH:
            shutil.copy(named(other, old, suffix), named(run, new, suffix))

    return tamper


def take_run_json(*more: Tamper) -> Tamper:
    """Copies the run.json of another run, and tampers `more`."""

    def tamper(run: Path, other: Path) -> None:
        shutil.copy(other / "run.json", run)
        for one in more:
            one(run, other)

    return tamper


def take_all_commits(run: Path, other: Path) -> None:
    """Copies all commits of another run."""
    shutil.copytree(other / "parts", run / "parts", dirs_exist_ok=True)


def swap(first: str, second: str, suffix: str) -> Tamper:
    """Swaps two files of the run."""

    def tamper(run: Path, _: Path) -> None:
        named(run, first, suffix).rename(run / "aside")
        named(run, second, suffix).rename(named(run, first, suffix))
        (run / "aside").rename(named(run, second, suffix))

    return tamper


def reseal(file: str, **changes: Any) -> Tamper:
    """Changes values of a JSON file and seals it again; `part__rows` is `rows` in `part`."""

    def tamper(run: Path, _: Path) -> None:
        content = json.loads((run / file).read_text())
        del content["seal"]
        for key, value in changes.items():
            *outer, last = key.split("__")
            place = content
            for name in outer:
                place = place[name]
            place[last] = value
        write_sealed_json(run / file, content)

    return tamper


def write(file: str, text: str) -> Tamper:
    """Writes a file anew."""
    return instead(file, lambda path: path.write_text(text))


def instead(file: str, make: Callable[[Path], Any]) -> Tamper:
    """Puts something else in the place of a file."""

    def tamper(run: Path, _: Path) -> None:
        (run / file).unlink()
        make(run / file)

    return tamper


def named(run: Path, stem: str, suffix: str) -> Path:
    """A file in parts/, for shard 0-of-1 if the name does not say."""
    return run / "parts" / f"{stem if '-' in stem else f'0-of-1-{stem}'}{suffix}"


BOTH = (".json", ".parquet")
RECORD, PART = "parts/0-of-1-000002.json", "parts/0-of-1-000002.parquet"
CASES: dict[str, Tamper] = {
    "a commit under another counter": rename("000002", "000012"),
    "a commit of another shard": rename("000002", "1-of-2-000002"),
    "a commit of another number of shards": rename("000002", "0-of-2-000002"),
    "a record alone under another counter": rename("000002", "000012", ".json"),
    "a part alone under another counter": rename("000002", "000012", ".parquet"),
    "a huge counter": rename("000002", "1" * 17, ".json"),
    "a commit with a huge counter": rename("000002", "1" * 17),
    "a counter of 200 digits": copy("000002", "1" * 200),
    "a copy under another counter": copy("000002", "000012"),
    "a copy with a leading zero": copy("000002", "00-of-1-000002"),
    "a copy with digits of another script": copy("000002", "0-of-1-٠٠٠٠٠٢"),
    "a copy of a shard that does not exist": copy("000002", "5-of-2-000002"),
    "a copy with seven digits": copy("000002", "0000002"),
    "two parts swapped": swap("000001", "000002", ".parquet"),
    "two records swapped": swap("000001", "000002", ".json"),
    "a commit of another run in place of one": take("000002", "000002"),
    "a commit of another run besides": take("000001", "000012"),
    "a record of another run": take("000002", "000002", ".json"),
    "a part of another run": take("000002", "000002", ".parquet"),
    "the run.json of another run": take_run_json(),
    "another run.json, and one commit of its run": take_run_json(take("000002", "000002")),
    "all commits of another run": take_all_commits,
    "a wider column in run.json": reseal("run.json", vectors__vision_only_representation=7),
    "a column of width 0": reseal("run.json", vectors__vision_only_representation=0),
    "a column of negative width": reseal("run.json", vectors__vision_only_representation=-1),
    "a column of huge width": reseal("run.json", vectors__vision_only_representation=HUGE),
    "a column more": reseal("run.json", extras__more="int64"),
    "no input columns": reseal("run.json", extras={}),
    "another store dtype": reseal("run.json", request__store_dtype="float16"),
    "run.json without answers": reseal("run.json", request__answers=False),
    "another run id": reseal("run.json", run_id="another"),
    "a run id that is a number": reseal("run.json", run_id=1),
    "format 0": reseal("run.json", format_version=0),
    "a huge format": reseal("run.json", format_version=HUGE),
    "a format that is text": reseal("run.json", format_version="1"),
    "a dataset of negative size": reseal("run.json", dataset__rows=-HUGE),
    "a row more than there are": reseal(RECORD, part__rows=4),
    "a row less than there are": reseal(RECORD, part__rows=2),
    "no rows": reseal(RECORD, part__rows=0),
    "huge rows": reseal(RECORD, part__rows=HUGE),
    "huge bytes": reseal(RECORD, part__bytes=HUGE),
    "negative bytes": reseal(RECORD, part__bytes=-1),
    "a huge footer": reseal(RECORD, part__footer_bytes=HUGE),
    "a negative footer": reseal(RECORD, part__footer_bytes=-9),
    "no checksums": reseal(RECORD, part__chunk_crc32=[]),
    "checksums of one column": reseal(RECORD, part__chunk_crc32=[[1]]),
    "no part": reseal(RECORD, part=None),
    "a commit that replaces itself": reseal(RECORD, replaces=[2]),
    "a commit that replaces a later one": reseal(RECORD, replaces=[3]),
    "a commit that replaces a huge counter": reseal(RECORD, replaces=[HUGE]),
    "a failure in a huge row": reseal(RECORD, failures=[{"sample_id": "x", "input_index": HUGE, "reason": "?"}]),
    "a record that is deeply nested": write(RECORD, TOO_DEEP),
    "a run.json that is deeply nested": write("run.json", f'{{"format_version": {DEEP}, "seal": "x"}}'),
    "a record with a number of 5,000 digits": write(RECORD, f'{{"part": {"9" * 5_000}}}'),
    "a record that is a folder": instead(RECORD, Path.mkdir),
    "a record that is a pipe": instead(RECORD, os.mkfifo),
    "a part that is a dangling link": instead(PART, lambda file: file.symlink_to("nowhere")),
}
NO_RECORD_LEFT = (
    "a record of another run",
    "a record that is deeply nested",
    "a record with a number of 5,000 digits",
    "a record that is a folder",
    "a record that is a pipe",
    "a commit that replaces itself",
    "a commit that replaces a later one",
    "a commit that replaces a huge counter",
)
"""Here nothing says any more what the part should be, so that its samples are extracted again."""


class TooSlowError(BaseException):
    """A case that hangs."""


def tampered(count: int, seed: int) -> Outcome:
    """Each case once, in this order."""
    with scratch() as runs:
        write_run(runs / "run", compacted=False)
        with RunWriter(runs / "other", make_spec(run_id="of another run"), commit_seconds=0) as writer:
            for i in range(9):
                writer.add(make_record(i))
        whole = content_of(runs / "run")

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            name, tamper = list(CASES.items())[number]
            run = shutil.copytree(runs / "run", folder / "run")
            tamper(run, runs / "other")
            signal.signal(signal.SIGALRM, too_slow)
            signal.alarm(LONGEST_S)
            try:
                is_refused = refused(run, whole)
                before = rows_of(run, name)
                found = bool(report_of(verify_run, run))
                report_of(drop_bad, run)
                left = rows_of(run, name)
                require(left == before, f"{name}: good rows were deleted: {before - left}")
                require(found or not is_refused, f"{name}: readers refuse what verify calls sound")
            finally:
                signal.alarm(0)
            return {"refused": is_refused, "harmless": not is_refused}

        return attempts(count, seed, attempt)


def refused(run: Path, whole: Content) -> bool:
    """Whether readers refuse the run; if not, it must read as before."""
    try:
        content = content_of(run)
    except MidsightError:
        return True
    same = {sample_id: row for sample_id, row in whole.rows.items() if sample_id in content.rows}
    require(content.rows == same, "rows are read that were not written")
    return False


def report_of(act: Callable[[Path], Any], run: Path) -> bool:
    """Whether verification finds something; a refusal is a find."""
    try:
        return bool(act(run).findings or act(run).notes)
    except MidsightError:
        return True


def rows_of(run: Path, name: str) -> set[str]:
    """The ids of the rows in all Parquet files of the folder, but for those that lost their record."""
    found: set[str] = set()
    for file in sorted(run.rglob("*")):
        is_lost = name in NO_RECORD_LEFT and file == run / PART
        if not is_lost and file.is_file() and file.read_bytes()[-4:] == b"PAR1":
            found |= {*pq.read_table(file, columns=["sample_id", "question"]).column("sample_id").to_pylist()}
    return found


def too_slow(*_: object) -> None:
    """Ends a case that hangs."""
    raise TooSlowError(f"it takes more than {LONGEST_S} s")


EXPERIMENTS = (
    Experiment(
        GROUP, "files renamed, copied from another run, or changed and sealed again", tampered, len(CASES), len(CASES)
    ),
)

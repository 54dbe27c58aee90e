"""Long runs: a million rows and two thousand parts, in bounded memory and time."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import faults.command  # noqa: F401  (sets where Python looks for this package)
from faults.experiment import Experiment, Outcome, attempts, demand
from midsight.records import Record
from midsight.store import RunSpec, open_run
from midsight.store.commits import Commit, part_path, write_commit
from midsight.store.parts import digest_part, encode_part
from midsight.store.schema import records_to_table

GROUP = "Long runs"
ROWS = 1_000_000
QUICK_ROWS = 20_000
ROWS_OF_A_PART = {ROWS: 500, QUICK_ROWS: 100}
QUESTIONS_OF_AN_IMAGE = 10
MAX_BYTES = 10**9
MAX_SECONDS = 60.0
MAX_SECONDS_TO_OPEN = 2.0


@functools.cache
def long_run(rows: int) -> tuple[Any, Path, Path]:
    """A table of so many rows, and its run without the last part; the first value removes both when it goes."""
    folder = tempfile.TemporaryDirectory(prefix="midsight-faults-")
    data, run = Path(folder.name) / "data.jsonl", Path(folder.name) / "run"
    size = ROWS_OF_A_PART[rows]
    with data.open("w") as file:
        for i in range(rows):
            row = {"id": f"sample-{i:07d}", "image": image_of(i), "question": f"What is in row {i}?", "source": "web"}
            file.write(json.dumps(row) + "\n")
    (data.parent / "images").mkdir()
    for i in range(rows - size, rows):
        Image.new("RGB", (2, 2), (i % 256, i // 256 % 256, 0)).save(data.parent / image_of(i))
    step("plan", data, run)
    spec = open_run(run).spec
    for counter in range(rows // size - 1):
        table = records_to_table([*records(range(counter * size, (counter + 1) * size), spec)], spec)
        part = encode_part(table)
        part_path(run, (0, 1), counter).write_bytes(part)
        write_commit(run, Commit((0, 1), counter, digest_part(part), ()))
    return folder, data, run


def image_of(index: int) -> str:
    """The image of a row."""
    return f"images/{index // QUESTIONS_OF_AN_IMAGE}.png"


def records(indices: range, spec: RunSpec) -> Iterator[Record]:
    """Rows as the writer gets them."""
    for i in indices:
        yield Record(
            sample_id=f"sample-{i:07d}",
            input_index=i,
            image_id=f"{i // QUESTIONS_OF_AN_IMAGE:064d}",
            image=image_of(i),
            question=f"What is in row {i}?",
            reference_answers=(),
            extras={"source": "web"},
            vectors={name: np.full(width, i, np.float32) for name, width in spec.vectors.items()},
        )


def step(name: str, data: Path, run: Path) -> dict[str, Any]:
    """What a step printed about itself, its seconds and its memory."""
    command = [sys.executable, "-m", "faults.scale_steps", name, str(data), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    demand(done.returncode == 0, f"{name} fails: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, max_seconds: float, expected: Callable[[int], dict[str, int]]) -> Callable[[int, int], Outcome]:
    """One step over so many rows: right counts, a gigabyte at most, imports included, and at full size in time."""

    def run_experiment(count: int, seed: int) -> Outcome:
        notes: list[str] = []

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            _, data, run = long_run(count)
            found = step(name, data, run)
            memory = found["peak_bytes"]
            notes.append(
                f"{count:,} rows: {found['wall_s']:.1f} s, of which the processor worked {found['work_s']:.1f}; "
                f"{memory / 1e6:,.0f} MB in all, {found['imported_bytes'] / 1e6:,.0f} MB of them the imports"
            )
            demand(found["counts"] == expected(count), f"{name} counts {found['counts']}")
            demand(memory < MAX_BYTES, f"{name} takes {memory / 1e6:,.0f} MB")
            # Of the processor, since others may use the machine too.
            demand(count < ROWS or found["work_s"] < max_seconds, f"{name} takes {found['work_s']:.1f} s")
            return {}

        outcome = attempts(1, seed, attempt)
        return outcome if outcome.passed < outcome.tried else Outcome(1, 1, notes[0])

    return run_experiment


def stored_before(rows: int) -> int:
    """Rows of the run before it is resumed."""
    return rows - ROWS_OF_A_PART[rows]


EXPERIMENTS = (
    Experiment(
        GROUP,
        "all that an extraction does before its first sample, in a run that is nearly done",
        measured("plan", MAX_SECONDS, lambda rows: {"samples": rows, "already": stored_before(rows)}),
        ROWS,
        QUICK_ROWS,
    ),
    Experiment(
        GROUP,
        "resuming that run to its end",
        measured("resume", MAX_SECONDS, lambda rows: {"rows": rows}),
        ROWS,
        QUICK_ROWS,
    ),
    Experiment(GROUP, "show", measured("show", MAX_SECONDS, lambda rows: {"rows": rows}), ROWS, QUICK_ROWS),
    Experiment(
        GROUP,
        "opening its 2,000 parts",
        measured("open", MAX_SECONDS_TO_OPEN, lambda rows: {"rows": rows, "commits": rows // ROWS_OF_A_PART[rows]}),
        ROWS,
        QUICK_ROWS,
    ),
)

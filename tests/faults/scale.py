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

import faults.command  # noqa: F401  (sets the path on which Python finds this package)
from faults.experiment import Experiment, Outcome, attempts, require
from faults.usage import Usage
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
"""Maximum peak memory, imports included."""
MAX_SECONDS = 60.0
MAX_SECONDS_TO_OPEN = 2.0


@functools.cache
def long_run(rows: int, questions: int) -> tuple[Any, Path, Path]:
    """A table of `rows` rows with so many questions on each image, and its run without the last part.

    The first value deletes both when it is collected.
    """
    folder = tempfile.TemporaryDirectory(prefix="midsight-faults-")
    data, run = Path(folder.name) / "data.jsonl", Path(folder.name) / "run"
    size = ROWS_OF_A_PART[rows]
    with data.open("w") as file:
        for i in range(rows):
            row = {
                "id": f"sample-{i:07d}",
                "image": image_of(i, questions),
                "question": f"What is in row {i}?",
                "source": "web",
            }
            file.write(json.dumps(row) + "\n")
    (data.parent / "images").mkdir()
    for i in range(rows - size, rows):
        Image.new("RGB", (2, 2), (i % 256, i // 256 % 256, 0)).save(data.parent / image_of(i, questions))
    step("start", data, run)
    spec = open_run(run).spec
    for counter in range(rows // size - 1):
        table = records_to_table([*records(range(counter * size, (counter + 1) * size), questions, spec)], spec.columns)
        part = encode_part(table)
        part_path(run, (0, 1), counter).write_bytes(part)
        write_commit(run, Commit((0, 1), counter, digest_part(part), ()), spec.run_id)
    return folder, data, run


def image_of(index: int, questions: int) -> str:
    """Image path of a row."""
    return f"images/{index // questions}.png"


def records(indices: range, questions: int, spec: RunSpec) -> Iterator[Record]:
    """Records as the writer receives them."""
    for i in indices:
        yield Record(
            sample_id=f"sample-{i:07d}",
            input_index=i,
            image_id=f"{i // questions:064d}",
            image=image_of(i, questions),
            question=f"What is in row {i}?",
            reference_answers=(),
            extras={"source": "web"},
            vectors={name: np.full(width, i, np.float32) for name, width in spec.vectors.items()},
        )


def step(name: str, data: Path, run: Path) -> dict[str, Any]:
    """Runs a step in a new process; returns its counts, seconds and memory."""
    command = [sys.executable, "-m", "faults.scale_steps", name, str(data), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"{name} fails: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(
    name: str,
    max_seconds: float,
    expected: Callable[[int], dict[str, int]],
    *,
    questions: int = QUESTIONS_OF_AN_IMAGE,
) -> Callable[[int, int], Outcome]:
    """An experiment with one step: right counts, at most 1 GB of memory, and at full size limited time."""

    def run_experiment(count: int, seed: int) -> Outcome:
        notes: list[str] = []

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            _, data, run = long_run(count, questions)
            found = step(name, data, run)
            counts, wall_s = found.pop("counts"), found.pop("wall_s")
            usage = Usage(**found)
            notes.append(f"{count:,} rows: {wall_s:.1f} s, {usage}")
            require(counts == expected(count), f"{name} counts {counts}")
            require(usage.peak_bytes < MAX_BYTES, f"{name} takes {usage}")
            # CPU time, because other programs may use the machine too.
            require(count < ROWS or usage.cpu_s < max_seconds, f"{name} takes {usage}")
            return {}

        outcome = attempts(1, seed, attempt)
        return outcome if outcome.passed < outcome.tried else Outcome(1, 1, notes[0])

    return run_experiment


def stored_before(rows: int) -> int:
    """Number of rows in the run before it is resumed."""
    return rows - ROWS_OF_A_PART[rows]


EXPERIMENTS = (
    Experiment(
        GROUP,
        "starting an extraction whose run is nearly done, up to its first sample",
        measured("start", MAX_SECONDS, lambda rows: {"samples": rows, "already": stored_before(rows)}),
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

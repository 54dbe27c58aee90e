"""Samples that are as large as a user can make them, with the demo model and the command's default options."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.command import start, wait_for
from faults.experiment import Experiment, Outcome, attempts, require
from faults.usage import Usage
from midsight.demo.seeing import write_seeing_model
from midsight.store import open_run
from support.pictures import picture

GROUP = "Large samples"
MAX_BYTES = 4 * 10**9
"""Maximum peak memory, imports included."""
QUESTIONS, QUICK_QUESTIONS = 5_000, 200
LONGEST_S = 1_800.0
"""Timeout of an extraction; what matters is its CPU time."""

Rows = Sequence[Mapping[str, Any]]


@functools.cache
def demo_model() -> tuple[Any, Path]:
    """The demo model's folder; the first value deletes it when it is collected."""
    folder = tempfile.TemporaryDirectory(prefix="midsight-faults-")
    return folder, write_seeing_model(Path(folder.name) / "model")


def measured(make: Callable[[Path, int], Rows], refused: str | None) -> Callable[[int, int], Outcome]:
    """Extracts the rows that `make` writes into a folder, beside a small sample, and measures what that takes.

    With `refused`, the samples fail for a reason with this text; without it they are stored. The small sample is.
    """

    def run_experiment(count: int, seed: int) -> Outcome:
        notes: list[str] = []

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            picture((64, 64), 0).save(folder / "small.png")
            rows = [*make(folder, count), {"id": "small", "image": "small.png", "question": "What is this?"}]
            (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            arguments = ["extract", folder / "data.jsonl", "--model", demo_model()[1], "--out", folder / "run"]
            process = start(arguments, folder / "output", made_up=False, usage=folder / "usage")
            done = wait_for(process, folder / "output", LONGEST_S)
            require(done.exit_code == (1 if refused else 0), f"it ends with {done.exit_code}: {done.output}")
            run = open_run(folder / "run")
            failures = {failure.sample_id: failure.reason for failure in run.failures()}
            expected = {row["id"] for row in rows[:-1]} if refused else set[str]()
            require(failures.keys() == expected, f"failed are {failures}")
            require(len(run) == len(rows) - len(expected), f"{len(run)} rows are stored")
            for reason in failures.values():
                require(re.search(refused or "", reason) is not None, f"the reason is {reason}")
            usage = Usage(**json.loads((folder / "usage").read_text()))
            require(usage.peak_bytes < MAX_BYTES, f"it takes {usage}")
            notes.append(f"{'failed' if refused else 'stored'}, {usage}")
            return {}

        outcome = attempts(1, seed, attempt)
        if outcome.passed < outcome.tried:
            return outcome
        return Outcome(1, 1, f"{count:,} rows: {notes[0]}" if count > 1 else notes[0])

    return run_experiment


def thousand_images(folder: Path, _: int) -> Rows:
    """One sample with 1,000 images."""
    for number in range(1_000):
        picture((224, 224), number).save(folder / f"{number}.jpg")
    return [{"id": "many", "image": [f"{number}.jpg" for number in range(1_000)], "question": "Which one is red?"}]


def long_question(folder: Path, _: int) -> Rows:
    """One question of 100 kB."""
    picture((64, 64), 1).save(folder / "long.png")
    return [{"id": "long", "image": "long.png", "question": "What is the weather like? " * 4_000}]


def many_questions(folder: Path, count: int) -> Rows:
    """Questions on one image."""
    picture((224, 224), 1).save(folder / "one.png")
    return [{"id": f"q{number}", "image": "one.png", "question": f"Is it {number}?"} for number in range(count)]


def large_images(folder: Path, _: int) -> Rows:
    """One sample with four images of 100 megapixels."""
    Image.linear_gradient("L").resize((10_000, 10_000)).save(folder / "0.jpg")
    for number in range(1, 4):
        shutil.copy(folder / "0.jpg", folder / f"{number}.jpg")
    names = [f"{number}.jpg" for number in range(4)]
    return [{"id": "large", "image": names, "question": "Which one is brightest?"}]


EXPERIMENTS = (
    Experiment(GROUP, "a sample with 1,000 images", measured(thousand_images, "of the sample's 1,000 images"), 1, 1),
    Experiment(GROUP, "a question of 100 kB", measured(long_question, None), 1, 1),
    Experiment(GROUP, "5,000 questions on one image", measured(many_questions, None), QUESTIONS, QUICK_QUESTIONS),
    Experiment(GROUP, "a sample with four images of 100 megapixels", measured(large_images, None), 1, 1),
)

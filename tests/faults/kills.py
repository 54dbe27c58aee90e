"""SIGKILL: at random moments, and at named points of a commit and of a compaction."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from faults.command import Ended, ended, extract_call, midsight, start
from faults.content import Content, content_of, demand_part_of, demand_sound, demand_whole
from faults.experiment import Experiment, Outcome, attempts, demand, scratch
from faults.injected import Fault
from faults.made_up_model import QUESTIONS_OF_AN_IMAGE, write_dataset
from midsight.store import open_run
from midsight.testing import write_phi4_multimodal
from pictures import encoded, picture

GROUP = "Killed"
SAMPLES = 300
SAMPLES_OF_REAL_MODEL = 40
SAMPLES_AT_POINTS = 60
COMMITS_AT_POINTS = SAMPLES_AT_POINTS // QUESTIONS_OF_AN_IMAGE - 1
"""Commits of such a run that have a part: one for each image that is there."""

COMMIT_POINTS = {
    "before the part is begun": Fault("open", ".parquet"),
    "half-way in the part's bytes": Fault("write", ".parquet"),
    "before the part is flushed to the disk": Fault("flush", ".parquet"),
    "before the part gets its name": Fault("rename", ".parquet"),
    "between part and record": Fault("rename", ".parquet", after=True),
    "half-way in the record's bytes": Fault("write", ".json"),
    "before the record gets its name": Fault("rename", ".json"),
    "after the record got its name": Fault("rename", ".json", after=True),
}
COMPACTION_POINTS = {
    "before the merged part is begun": Fault("open", ".parquet"),
    "half-way in the merged part's bytes": Fault("write", ".parquet"),
    "before the merged part gets its name": Fault("rename", ".parquet"),
    "between merged part and record": Fault("rename", ".parquet", after=True),
    "before the merged record gets its name": Fault("rename", ".json"),
    "between merged record and the removal of the old parts": Fault("rename", ".json", after=True),
    "between an old record and its part": Fault("remove", ".json", after=True),
    "half-way in the removal of the old parts": Fault("remove", ".parquet", after=True),
}


@dataclass(frozen=True)
class Uninterrupted:
    """A dataset and a run of it that nothing disturbed."""

    data: Path
    """The dataset."""
    run: Path
    """The run folder."""
    content: Content
    """What that reads as."""
    seconds: float
    """How long it took."""


@contextmanager
def uninterrupted(samples: int) -> Iterator[Uninterrupted]:
    """A run of a dataset of its own, both gone afterwards."""
    with scratch() as folder:
        data = write_dataset(folder / "data", samples)
        seconds = 0.0
        for name in ("first", "run"):  # the first one may have to wait for the imports
            began = time.monotonic()
            done = midsight(extract_call(data, folder / name), folder / "said")
            seconds = time.monotonic() - began
            demand(done.exit_code == 1, f"the uninterrupted run ends with {done.exit_code}: {done.said}")
        content = content_of(folder / "run")
        counts, failing = (len(content.rows), len(content.failures)), QUESTIONS_OF_AN_IMAGE
        demand(counts == (samples - failing, failing), f"the uninterrupted run has {counts} rows and failures")
        yield Uninterrupted(data, folder / "run", content, seconds)


def at_random_moments(count: int, seed: int) -> Outcome:
    """A run of 300 samples is killed 1 to 10 times and started again until it is done."""
    with uninterrupted(SAMPLES) as whole:

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            counted: Counter[str] = Counter()
            wanted = int(random.integers(1, 11))
            while not counted["kills"]:  # a slow machine may reach the end first: that is no attempt
                run = folder / f"run {counted['readings in between']}"
                # On average the kills share the time that the run takes: some come before there is a
                # run at all, and most runs meet all of theirs.
                longest = min(0.9, 2 / (wanted + 1)) * whole.seconds
                for _ in range(wanted):
                    counted += kill_once(whole, run, random.uniform(0, longest), folder / "said")
            demand_finishes(whole, run, folder / "said")
            return counted

        return attempts(count, seed, attempt)


def kill_once(whole: Uninterrupted, run: Path, seconds: float, said: Path) -> Counter[str]:
    """Starts the run, reads it until so many seconds are over, kills it, and reads and verifies what is left."""
    deadline = time.monotonic() + seconds
    process = start(extract_call(whole.data, run), said)
    readings = 0
    while time.monotonic() < deadline and process.is_alive():
        readings += demand_part_of(run, whole.content)
        time.sleep(0.01)
    process.kill()
    killed = ended(process, said).exit_code == -signal.SIGKILL
    readings += demand_part_of(run, whole.content)
    demand_sound(run)
    return Counter({"kills": int(killed), "readings in between": readings})


def with_a_real_model(count: int, seed: int) -> Outcome:
    """The demo checkpoint, one sample at a time, is killed once while it computes and started again."""
    with scratch() as folder:
        data, checkpoint = folder / "data.jsonl", write_phi4_multimodal(folder / "checkpoint")
        rows = [{"image": f"{i // 2}.png", "question": f"What is {i}?"} for i in range(SAMPLES_OF_REAL_MODEL)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i in range(SAMPLES_OF_REAL_MODEL // 2):
            (folder / f"{i}.png").write_bytes(encoded(picture((64, 64), i)))
        options = ["--device", "cpu", "--batch-size", "1", "--max-new-tokens", "4", "--commit-seconds", "0"]

        def extract_started(run: Path) -> BaseProcess:
            """An extraction that has begun to compute."""
            call = ["extract", data, "--model", checkpoint, "--out", run, *options]
            process = start(call, folder / "said", made_up=False)
            while process.is_alive() and not (run / "run.json").exists():
                time.sleep(0.01)
            return process

        def extract_finished(run: Path) -> None:
            done = ended(extract_started(run), folder / "said")
            demand(done.exit_code == 0, f"it ends with {done.exit_code}: {done.said}")

        process, began = extract_started(folder / "run"), time.monotonic()
        demand(ended(process, folder / "said").exit_code == 0, "the uninterrupted run fails")
        seconds, whole = time.monotonic() - began, content_of(folder / "run")

        def attempt(empty: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run = empty / "run"
            process = extract_started(run)
            time.sleep(random.uniform(0.1, 0.7) * seconds)
            process.kill()
            demand_killed(ended(process, folder / "said"))
            demand_part_of(run, whole)
            demand_sound(run)
            kept = len(open_run(run))
            extract_finished(run)
            demand_whole(run, whole)
            return {"rows were stored before the kills": kept}

        return attempts(count, seed, attempt)


def during_a_commit(fault: Fault) -> Callable[[int, int], Outcome]:
    """An extraction is killed at one point of one of its commits and started again."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with uninterrupted(SAMPLES_AT_POINTS) as whole:

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                run = folder / "run"
                at = int(random.integers(1, COMMITS_AT_POINTS + 1))
                demand_killed(midsight(extract_call(whole.data, run), folder / "said", replace(fault, number=at)))
                demand_part_of(run, whole.content)
                kept = len(open_run(run)) if at > 1 else 0
                demand_sound(run)
                demand_finishes(whole, run, folder / "said")
                return {"rows were stored before the kills": kept}

            return attempts(count, seed, attempt)

    return run_experiment


def during_a_compaction(fault: Fault) -> Callable[[int, int], Outcome]:
    """A compaction is killed at one point; the run reads as before; then it is resumed, or compacted again."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with uninterrupted(SAMPLES_AT_POINTS) as whole:

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                run = shutil.copytree(whole.run, folder / "run")
                at = int(random.integers(1, COMMITS_AT_POINTS)) if fault.act == "remove" else 1
                demand_killed(midsight(["compact", run], folder / "said", replace(fault, number=at)))
                left = len([*run.glob("parts/*")])
                demand_whole(run, whole.content)
                if number % 2:
                    demand_finishes(whole, run, folder / "said")
                compacted = midsight(["compact", run], folder / "said")
                demand(compacted.exit_code == 0, f"compact ends with {compacted.exit_code}: {compacted.said}")
                demand_whole(run, whole.content)
                demand(len([*run.glob("parts/*")]) == 2, "more than the merged part and its record is left")
                return {"files were there after the kills": left}

            return attempts(count, seed, attempt)

    return run_experiment


def demand_finishes(whole: Uninterrupted, run: Path, said: Path) -> None:
    """Demands that the same command, started again, ends with the uninterrupted run."""
    done = midsight(extract_call(whole.data, run), said)
    demand(done.exit_code == 1, f"started again it ends with {done.exit_code}: {done.said}")
    demand_whole(run, whole.content)


def demand_killed(done: Ended) -> None:
    """Demands that a process did not end by itself."""
    demand(done.exit_code == -signal.SIGKILL, f"it was not killed and ended with {done.exit_code}: {done.said}")


EXPERIMENTS = (
    Experiment(GROUP, f"{SAMPLES} samples, killed at 1 to 10 random moments", at_random_moments, 100, 10),
    Experiment(GROUP, "the demo's checkpoint, killed while it computes", with_a_real_model, 3, 1),
    *(Experiment(GROUP, f"a commit, {name}", during_a_commit(fault), 10, 2) for name, fault in COMMIT_POINTS.items()),
    *(
        Experiment(GROUP, f"a compaction, {name}", during_a_compaction(fault), 10, 2)
        for name, fault in COMPACTION_POINTS.items()
    ),
)

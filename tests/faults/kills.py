"""SIGKILL at random moments, and at named points of a commit and of a compaction."""

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

from faults.command import Ended, extract_arguments, run_command, start, wait_for
from faults.content import Content, content_of, require_complete, require_part_of, require_sound
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from faults.injected import Fault
from faults.made_up_model import QUESTIONS_OF_AN_IMAGE, write_dataset
from midsight.store import open_run
from midsight.testing import write_phi4_multimodal
from support.pictures import encoded, picture

GROUP = "Killed"
SAMPLES = 300
SAMPLES_OF_REAL_MODEL = 40
SAMPLES_AT_POINTS = 60
COMMITS_AT_POINTS = SAMPLES_AT_POINTS // QUESTIONS_OF_AN_IMAGE - 1
"""Commits of such a run that have a part: one for each existing image."""

COMMIT_POINTS = {
    "before the part is created": Fault("open", ".parquet"),
    "half-way through the part's bytes": Fault("write", ".parquet"),
    "before the part is flushed to the disk": Fault("flush", ".parquet"),
    "before the part is renamed": Fault("rename", ".parquet"),
    "between part and record": Fault("rename", ".parquet", after=True),
    "half-way through the record's bytes": Fault("write", ".json"),
    "before the record is renamed": Fault("rename", ".json"),
    "after the record is renamed": Fault("rename", ".json", after=True),
}
COMPACTION_POINTS = {
    "before the merged part is created": Fault("open", ".parquet"),
    "half-way through the merged part's bytes": Fault("write", ".parquet"),
    "before the merged part is renamed": Fault("rename", ".parquet"),
    "between merged part and record": Fault("rename", ".parquet", after=True),
    "before the merged record is renamed": Fault("rename", ".json"),
    "between merged record and the removal of the old parts": Fault("rename", ".json", after=True),
    "between the removal of an old record and of its part": Fault("remove", ".json", after=True),
    "half-way through the removal of the old parts": Fault("remove", ".parquet", after=True),
}


@dataclass(frozen=True)
class Uninterrupted:
    """A dataset and an undisturbed run of it."""

    data: Path
    """The dataset."""
    run: Path
    """The run folder."""
    content: Content
    """Content of the run."""
    seconds: float
    """Duration of the run."""


@contextmanager
def uninterrupted(samples: int) -> Iterator[Uninterrupted]:
    """Makes a dataset and a run of it; deletes both afterwards."""
    with scratch() as folder:
        data = write_dataset(folder / "data", samples)
        seconds = 0.0
        for name in ("first", "run"):  # the first run may wait for imports
            began = time.monotonic()
            done = run_command(extract_arguments(data, folder / name), folder / "output")
            seconds = time.monotonic() - began
            require(done.exit_code == 1, f"the uninterrupted run ends with {done.exit_code}: {done.output}")
        content = content_of(folder / "run")
        counts, failing = (len(content.rows), len(content.failures)), QUESTIONS_OF_AN_IMAGE
        require(counts == (samples - failing, failing), f"the uninterrupted run has {counts} rows and failures")
        yield Uninterrupted(data, folder / "run", content, seconds)


def at_random_moments(count: int, seed: int) -> Outcome:
    """Kills a run of 300 samples 1 to 10 times, then lets it finish."""
    with uninterrupted(SAMPLES) as whole:

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            counted: Counter[str] = Counter()
            wanted = int(random.integers(1, 11))
            while not counted["kills"]:  # if the run ends before a kill, try again
                run = folder / f"run {counted['reads in between']}"
                # Kills spread over the duration of the run: some come before the run folder exists, and
                # most runs are hit by all of them.
                longest = min(0.9, 2 / (wanted + 1)) * whole.seconds
                for _ in range(wanted):
                    counted += kill_once(whole, run, random.uniform(0, longest), folder / "output")
            require_finish(whole, run, folder / "output")
            return counted

        return attempts(count, seed, attempt)


def kill_once(whole: Uninterrupted, run: Path, seconds: float, output: Path) -> Counter[str]:
    """Starts the run, reads it for `seconds` seconds, kills it, then reads and verifies it."""
    deadline = time.monotonic() + seconds
    process = start(extract_arguments(whole.data, run), output)
    readings = 0
    while time.monotonic() < deadline and process.is_alive():
        readings += require_part_of(run, whole.content)
        time.sleep(0.01)
    process.kill()
    killed = wait_for(process, output).exit_code == -signal.SIGKILL
    readings += require_part_of(run, whole.content)
    require_sound(run)
    return Counter({"kills": int(killed), "reads in between": readings})


def with_a_real_model(count: int, seed: int) -> Outcome:
    """Kills a run of the random checkpoint while the model computes, then lets it finish."""
    with scratch() as folder:
        data, checkpoint = folder / "data.jsonl", write_phi4_multimodal(folder / "checkpoint")
        rows = [{"image": f"{i // 2}.png", "question": f"What is {i}?"} for i in range(SAMPLES_OF_REAL_MODEL)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i in range(SAMPLES_OF_REAL_MODEL // 2):
            (folder / f"{i}.png").write_bytes(encoded(picture((64, 64), i)))
        options = ["--device", "cpu", "--batch-size", "1", "--max-new-tokens", "4", "--commit-seconds", "0"]

        def start_extraction(run: Path) -> BaseProcess:
            """Starts an extraction and waits until it computes."""
            call = ["extract", data, "--model", checkpoint, "--out", run, *options]
            process = start(call, folder / "output", made_up=False)
            while process.is_alive() and not (run / "run.json").exists():
                time.sleep(0.01)
            return process

        def finish_extraction(run: Path) -> None:
            done = wait_for(start_extraction(run), folder / "output")
            require(done.exit_code == 0, f"it ends with {done.exit_code}: {done.output}")

        process, began = start_extraction(folder / "run"), time.monotonic()
        require(wait_for(process, folder / "output").exit_code == 0, "the uninterrupted run fails")
        seconds, whole = time.monotonic() - began, content_of(folder / "run")

        def attempt(empty: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run = empty / "run"
            process = start_extraction(run)
            time.sleep(random.uniform(0.1, 0.7) * seconds)
            process.kill()
            require_killed(wait_for(process, folder / "output"))
            require_part_of(run, whole)
            require_sound(run)
            kept = len(open_run(run))
            finish_extraction(run)
            require_complete(run, whole)
            return {"rows stored before the kills": kept}

        return attempts(count, seed, attempt)


def during_a_commit(fault: Fault) -> Callable[[int, int], Outcome]:
    """Kills an extraction at one point of a commit, then lets it finish."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with uninterrupted(SAMPLES_AT_POINTS) as whole:

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                run = folder / "run"
                at = int(random.integers(1, COMMITS_AT_POINTS + 1))
                require_killed(
                    run_command(extract_arguments(whole.data, run), folder / "output", replace(fault, number=at))
                )
                require_part_of(run, whole.content)
                kept = len(open_run(run)) if at > 1 else 0
                require_sound(run)
                require_finish(whole, run, folder / "output")
                return {"rows stored before the kills": kept}

            return attempts(count, seed, attempt)

    return run_experiment


def during_a_compaction(fault: Fault) -> Callable[[int, int], Outcome]:
    """Kills a compaction at one point. The run reads as before; then it is resumed or compacted again."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with uninterrupted(SAMPLES_AT_POINTS) as whole:

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                run = shutil.copytree(whole.run, folder / "run")
                at = int(random.integers(1, COMMITS_AT_POINTS)) if fault.operation == "remove" else 1
                require_killed(run_command(["compact", run], folder / "output", replace(fault, number=at)))
                left = len([*run.glob("parts/*")])
                require_complete(run, whole.content)
                if number % 2:
                    require_finish(whole, run, folder / "output")
                compacted = run_command(["compact", run], folder / "output")
                require(compacted.exit_code == 0, f"compact ends with {compacted.exit_code}: {compacted.output}")
                require_complete(run, whole.content)
                require(len([*run.glob("parts/*")]) == 2, "other files than the merged part and its record are left")
                return {"files left after the kills": left}

            return attempts(count, seed, attempt)

    return run_experiment


def require_finish(whole: Uninterrupted, run: Path, output: Path) -> None:
    """Requires that the same command, run again, completes the uninterrupted run."""
    done = run_command(extract_arguments(whole.data, run), output)
    require(done.exit_code == 1, f"started again it ends with {done.exit_code}: {done.output}")
    require_complete(run, whole.content)


def require_killed(done: Ended) -> None:
    """Requires that SIGKILL ended the process."""
    require(done.exit_code == -signal.SIGKILL, f"it was not killed and ended with {done.exit_code}: {done.output}")


EXPERIMENTS = (
    Experiment(GROUP, f"{SAMPLES} samples, killed at 1 to 10 random moments", at_random_moments, 100, 10),
    Experiment(GROUP, "a random checkpoint, killed while it computes", with_a_real_model, 3, 1),
    *(Experiment(GROUP, f"a commit, {name}", during_a_commit(fault), 10, 2) for name, fault in COMMIT_POINTS.items()),
    *(
        Experiment(GROUP, f"a compaction, {name}", during_a_compaction(fault), 10, 2)
        for name, fault in COMPACTION_POINTS.items()
    ),
)

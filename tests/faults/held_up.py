"""Runs that are stopped for a while (SIGSTOP), and runs whose folder is deleted and started again meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil

from faults.command import Ended, extract_arguments, start, wait_for
from faults.content import content_of, require_complete, require_part_of, require_sound
from faults.deaths import SAMPLES, finished
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from faults.made_up_model import Behaviour, write_dataset
from midsight.store.lock import SHARD_WAIT_S, START_WAIT_S

GROUP = "Held up"
STARTS = 3
"""Attempts that wait for a start as long as users do; a single attempt waits for a moment."""
SLOW_S = 0.05
"""Time of a sample, so that a run is found at work."""
LONG_S = 0.2
"""Time of a sample, so that a call takes longer than a start."""
WAIT_S = 60.0

Hold = Callable[[Path, Path, Path], "tuple[BaseProcess, Behaviour, float]"]
"""Takes the data, a run and a file for output. Returns a stopped process, how another one behaves and how long it
waits."""


def in_its_start(wait_s: float) -> Hold:
    """A process that stops while it holds run.lock."""

    def hold(data: Path, run: Path, output: Path) -> tuple[BaseProcess, Behaviour, float]:
        process = start(extract_arguments(data, run), output, behaviour=Behaviour(stops_at_start=True))
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        return process, Behaviour(start_wait_s=wait_s), wait_s

    return hold


def at_work(data: Path, run: Path, output: Path) -> tuple[BaseProcess, Behaviour, float]:
    """A process that is stopped after its first commit."""
    process = start(extract_arguments(data, run), output, behaviour=Behaviour(seconds=SLOW_S))
    wait_until(lambda: any(run.glob("parts/*.json")))
    psutil.Process(process.pid).suspend()
    return process, Behaviour(), SHARD_WAIT_S


def wait_until(holds: Callable[[], bool]) -> None:
    """Waits until `holds` returns True, which is required within a minute."""
    ends = time.monotonic() + WAIT_S
    while not holds():
        require(time.monotonic() < ends, "what is waited for does not happen")
        time.sleep(0.01)


def stopped_for_a_while(count: int, seed: int, hold: Hold) -> Outcome:
    """Another process is refused and says who is stopped; after SIGCONT the first one completes the run."""
    with scratch() as place:
        data = write_dataset(place / "data", SAMPLES, missing=None)
        whole = finished(data, place / "run", place / "output", Behaviour())

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run = folder / "run"
            first, behaviour, wait_s = hold(data, run, folder / "output")
            with continued(first):
                began = time.monotonic()
                second = start(extract_arguments(data, run), folder / "refused", behaviour=behaviour)
                require_names_the_holder(wait_for(second, folder / "refused"), first)
                waited = time.monotonic() - began
            require(waited >= wait_s, f"it waited {waited:.1f} s instead of {wait_s:.1f} s")
            done = wait_for(first, folder / "output")
            require(done.exit_code == 0, f"the continued process ends with {done.exit_code}: {done.output}")
            require_complete(run, whole)
            require(finished(data, run, folder / "output", Behaviour()) == whole, "the next start changes the run")
            return {"s waited": int(waited)}

        return attempts(count, seed, attempt)


@contextmanager
def continued(process: BaseProcess) -> Iterator[None]:
    """Continues a stopped process when the block ends."""
    assert process.pid is not None
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def require_names_the_holder(refused: Ended, holder: BaseProcess) -> None:
    """Requires exit code 2 and one sentence with pid, host, command and remedy."""
    require(refused.exit_code == 2, f"the second process ends with {refused.exit_code}: {refused.output}")
    sentence = (
        rf"\nError: .* by process {holder.pid} on {re.escape(os.uname().nodename)} since 2\S+ \(.*python.*\), which is "
        rf"stopped; continue it with `kill -CONT {holder.pid}`, or end it with `kill -9 {holder.pid}`\.\n"
    )
    require(re.search(sentence, refused.output) is not None, f"it says {refused.output}")


def deleted_and_started_again(count: int, seed: int) -> Outcome:
    """The folder of a run at work is deleted, and the same command is started again: the first process gives up."""
    with scratch() as place:
        data = write_dataset(place / "data", SAMPLES, missing=None)
        whole = finished(data, place / "run", place / "output", Behaviour())

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run = folder / "run"
            first = start(extract_arguments(data, run), folder / "output", behaviour=Behaviour(seconds=LONG_S))
            wait_until(lambda: any(run.glob("parts/*.json")))
            time.sleep(LONG_S)  # it is in its second call now, and writes nothing
            shutil.rmtree(run)
            slow = Behaviour(seconds=random.uniform(0, SLOW_S))
            second = start(extract_arguments(data, run), folder / "second", behaviour=slow)
            ended = wait_for(first, folder / "output")
            require(ended.exit_code == 3, f"the first process ends with {ended.exit_code}: {ended.output}")
            again = wait_for(second, folder / "second")
            require(again.exit_code == 0, f"the second process ends with {again.exit_code}: {again.output}")
            require_complete(run, whole)
            return {"rows stored by the second": len(content_of(run).rows)}

        return attempts(count, seed, attempt)


def copied_at_work(count: int, seed: int) -> Outcome:
    """A run is copied file by file while it is written, as rsync does; original and copy are completed."""
    with scratch() as place:
        data = write_dataset(place / "data", SAMPLES, missing=None)
        whole = finished(data, place / "run", place / "output", Behaviour())

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run, copy = folder / "run", folder / "copy"
            first = start(extract_arguments(data, run), folder / "output", behaviour=Behaviour(seconds=SLOW_S))
            wait_until(lambda: any(run.glob("parts/*.json")))
            time.sleep(random.uniform(0, SAMPLES * SLOW_S))
            for file in sorted(run.rglob("*.*")):
                target = copy / file.relative_to(run)
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # temporary files and notes of what is in work
                    shutil.copy(file, target)
            require_part_of(copy, whole)
            require_sound(copy)
            copied = len(content_of(copy).rows)
            require(finished(data, copy, folder / "second", Behaviour()) == whole, "the completed copy differs")
            done = wait_for(first, folder / "output")
            require(done.exit_code == 0, f"the run ends with {done.exit_code}: {done.output}")
            require_complete(run, whole)
            return {"rows copied": copied}

        return attempts(count, seed, attempt)


EXPERIMENTS = (
    Experiment(
        GROUP,
        "a start that is stopped (SIGSTOP) while it holds run.lock, another start, then SIGCONT",
        lambda count, seed: stopped_for_a_while(count, seed, in_its_start(START_WAIT_S if count == STARTS else 0.5)),
        STARTS,
        1,
    ),
    Experiment(
        GROUP,
        "a run that is stopped (SIGSTOP) at work, another start, then SIGCONT",
        lambda count, seed: stopped_for_a_while(count, seed, at_work),
        10,
        1,
    ),
    Experiment(
        GROUP,
        "a run whose folder is deleted and started again while it is at work",
        deleted_and_started_again,
        20,
        1,
    ),
    Experiment(GROUP, "a run that is copied while it is at work, as by rsync; the copy too", copied_at_work, 20, 1),
)

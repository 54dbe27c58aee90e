"""Deaths that are nobody's fault, deaths that are a sample's, and signals that are followed by SIGKILL."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil

from faults.command import Ended, extract_arguments, start, wait_for
from faults.content import Content, content_of, require_sound
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from faults.made_up_model import Behaviour, write_dataset
from midsight.store import open_run

GROUP = "Blamed"
SAMPLES = 60
SLOW_S = 0.005
"""Time of a sample, so that kills find samples in work."""
KILLS = (2, 3, 6)
SENT = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
MOST_STARTS = 3
"""Starts within which a sample that kills has to be set aside."""
GRACE_S = 5.0
"""Time between SIGTERM and SIGKILL, as schedulers have it."""
STOP_S = 2.0
"""Time within which a signal has to end the command."""

Killer = Callable[[BaseProcess, np.random.Generator], None]


def kill_all(process: BaseProcess, _random: np.random.Generator) -> None:
    """Kills the command and its children, as the end of a job does."""
    with_children = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in with_children:
        one.kill()


def kill_one_or_all(process: BaseProcess, random: np.random.Generator) -> None:
    """Kills the command alone, its child alone, or both."""
    everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    chosen = int(random.integers(3))
    for one in everybody if chosen == 2 else everybody[chosen : chosen + 1]:
        one.kill()


def signal_one_or_all(process: BaseProcess, number: int, *, everybody: bool) -> None:
    """Signals the command alone, or with its children, as schedulers and closed terminals do."""
    command = psutil.Process(process.pid)
    for one in (command, *(command.children() if everybody else [])):
        one.send_signal(number)


def killed_from_outside(behaviour: Behaviour, killer: Killer) -> Callable[[int, int], Outcome]:
    """Kills a run 2, 3 or 6 times at random moments; no sample may ever be recorded as failed."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with scratch() as place:
            data = write_dataset(place / "data", SAMPLES, missing=None)
            finished(data, place / "first", place / "output", behaviour)  # it may wait for imports
            began = time.monotonic()
            whole = finished(data, place / "run", place / "output", behaviour)
            seconds = time.monotonic() - began

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                counted: Counter[str] = Counter()
                for _ in range(KILLS[number % len(KILLS)]):
                    process = start(extract_arguments(data, folder / "run"), folder / "output", behaviour=behaviour)
                    time.sleep(random.uniform(0, seconds))
                    try:
                        killer(process, random)
                        counted["kills"] += 1
                    except psutil.NoSuchProcess:
                        counted["ends before the kill"] += 1
                    wait_for(process, folder / "output")
                require(
                    finished(data, folder / "run", folder / "output", behaviour) == whole, "the finished run differs"
                )
                require_sound(folder / "run")
                recorded = [failure for commit in open_run(folder / "run").commits for failure in commit.failures]
                require(not recorded, f"a good sample was recorded as failed: {recorded}")
                return counted

            return attempts(count, seed, attempt)

    return run_experiment


def finished(data: Path, run: Path, output: Path, behaviour: Behaviour) -> Content:
    """Starts the command, which must end with 0; returns the content of the run."""
    done = wait_for(start(extract_arguments(data, run), output, behaviour=behaviour), output)
    require(done.exit_code == 0, f"it ends with {done.exit_code}: {done.output}")
    return content_of(run)


def deadly_sample(behaviour: Behaviour) -> Callable[[int, int], Outcome]:
    """One sample ends every process that works on it; it is set aside by name, and all others are stored."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with scratch() as place:
            data = write_dataset(place / "data", SAMPLES, missing=None)
            whole = finished(data, place / "run", place / "output", replace(behaviour, deadly=""))

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                deadly = f"q{random.integers(SAMPLES)}"
                run, output = folder / "run", folder / "output"
                done, starts = Ended(-1, ""), 0
                while done.exit_code != 1 and starts < MOST_STARTS:
                    process = start(extract_arguments(data, run), output, behaviour=replace(behaviour, deadly=deadly))
                    done, starts = wait_for(process, output), starts + 1
                require(done.exit_code == 1, f"start {starts} ends with {done.exit_code}: {done.output}")
                content = content_of(run)
                require([*content.failures] == [deadly], f"{deadly} kills, and failed are {[*content.failures]}")
                others = {sample_id: row for sample_id, row in whole.rows.items() if sample_id != deadly}
                require(content.rows == others, "the other rows differ from those of an undisturbed run")
                # It kills no longer: the next plain start gets it through.
                require(finished(data, run, output, replace(behaviour, deadly="")) == whole, "the repaired run differs")
                return {"starts": starts}

            return attempts(count, seed, attempt)

    return run_experiment


def stopped_then_killed(behaviour: Behaviour) -> Callable[[int, int], Outcome]:
    """A signal at a random moment, SIGKILL five seconds later: everything that was counted on the screen is stored."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with scratch() as place:
            data = write_dataset(place / "data", SAMPLES, missing=None)
            whole = finished(data, place / "run", place / "output", behaviour)

            def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
                sent = SENT[number % len(SENT)]
                run, counted = folder / "run", folder / "counted"
                arguments = [*extract_arguments(data, run)[:-1], 600, "--batch-size", 4]
                process = start(arguments, folder / "output", behaviour=replace(behaviour, counted=counted))
                target = int(random.integers(1, SAMPLES - 8))  # some calls before the end
                while process.is_alive() and not (counted.exists() and int(counted.read_text()) >= target):
                    time.sleep(0.002)
                time.sleep(random.uniform(0, 0.1))
                is_early = process.is_alive()
                with suppress(psutil.NoSuchProcess):
                    signal_one_or_all(process, sent, everybody=number % 2 == 1)
                asked = time.monotonic()
                process.join(GRACE_S)
                took = time.monotonic() - asked
                if process.is_alive():
                    kill_all(process, random)
                done = wait_for(process, folder / "output")
                stored = len(content_of(run).rows)
                shown = int(counted.read_text())
                require(stored >= shown, f"{shown} samples were counted and {stored} are stored")
                require(done.exit_code in (0, 3), f"it ends with {done.exit_code}: {done.output}")
                require(took < STOP_S, f"it took {took:.1f} s to stop")
                require(finished(data, run, folder / "output", behaviour) == whole, "the finished run differs")
                return {"before the end": is_early, "samples counted": shown, "stored": stored}

            return attempts(count, seed, attempt)

    return run_experiment


ON_CPU, ON_GPU = Behaviour(seconds=SLOW_S), Behaviour(seconds=SLOW_S, as_on_gpu=True)

EXPERIMENTS = (
    Experiment(GROUP, "killed 2, 3 or 6 times at random moments, CPU", killed_from_outside(ON_CPU, kill_all), 200, 1),
    Experiment(
        GROUP,
        "killed 2, 3 or 6 times at random moments (worker, supervisor or both), as on a GPU",
        killed_from_outside(ON_GPU, kill_one_or_all),
        200,
        1,
    ),
    Experiment(GROUP, "one sample aborts, CPU", deadly_sample(ON_CPU), 20, 1),
    Experiment(GROUP, "one sample aborts, as on a GPU", deadly_sample(ON_GPU), 20, 1),
    Experiment(GROUP, "one sample ends by SIGKILL, CPU", deadly_sample(replace(ON_CPU, signal=signal.SIGKILL)), 20, 1),
    Experiment(
        GROUP, "one sample ends by SIGKILL, as on a GPU", deadly_sample(replace(ON_GPU, signal=signal.SIGKILL)), 20, 1
    ),
    Experiment(
        GROUP,
        "SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU during slow calls, then SIGKILL",
        stopped_then_killed(replace(ON_CPU, seconds=0.02)),
        20,
        1,
    ),
    Experiment(
        GROUP,
        "the same, sent to the supervisor or to both processes, as on a GPU",
        stopped_then_killed(replace(ON_GPU, seconds=0.02)),
        20,
        1,
    ),
)

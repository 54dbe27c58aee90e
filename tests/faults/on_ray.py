"""Extractions by the workers of a Ray cluster on this machine: one is killed, or the command is stopped."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from faults.command import Ended, start, wait_for
from faults.content import require_sound
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from faults.made_up_model import write_dataset
from midsight.buckets.path import Place
from midsight.store import open_run
from midsight.testing import write_phi4_multimodal
from support.pictures import encoded, picture

GROUP = "On Ray"
SAMPLES = 400
FEW_SAMPLES = 40
SAMPLES_OF_AN_IMAGE = 4
SHARDS = 4
OPTIONS = (
    *("--device", "cpu", "--batch-size", f"{SAMPLES_OF_AN_IMAGE}", "--layers", "0", "--no-answers"),
    *("--commit-seconds", "1"),
)
WAIT_S = 300.0
"""Timeout of a command, in seconds."""
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@dataclass(frozen=True)
class Whole:
    """A call of extract, and what it leaves."""

    call: list[Any]
    """Its arguments, less those of the run folder and of Ray."""
    run: Path
    """The run of one process."""
    workers: int
    """Number of workers that make the call on Ray."""
    made_up: bool
    """Whether the model is the made-up one."""

    def start(self, run: Path, output: Path, *options: Any) -> BaseProcess:
        """Starts the call for another run folder, with more options."""
        return start([*self.call, "--out", run, *options], output, made_up=self.made_up)

    def by_one_process(self, run: Path, output: Path, *options: Any) -> None:
        """Makes the call without Ray, to its end."""
        require_done(wait_for(self.start(run, output, *options), output))


@dataclass
class Command:
    """The call by the workers of a cluster of its own."""

    process: psutil.Process
    """The command."""
    folder: Path
    """Where Ray keeps its files."""
    ended: Ended = field(default_factory=lambda: Ended(-1, "It has not ended."))
    """How it ended."""


@contextmanager
def by_one_process(samples: int = SAMPLES) -> Iterator[Whole]:
    """Makes a dataset and a run of it by one process with a small model; deletes both afterwards."""
    with scratch() as folder:
        data, checkpoint = folder / "data.jsonl", write_phi4_multimodal(folder / "checkpoint")
        rows = [{"image": f"{i // SAMPLES_OF_AN_IMAGE}.png", "question": f"What is {i}?"} for i in range(samples)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i in range(samples // SAMPLES_OF_AN_IMAGE):
            (folder / f"{i}.png").write_bytes(encoded(picture((64, 64), i)))
        whole = Whole(["extract", data, "--model", checkpoint, *OPTIONS], folder / "run", workers=2, made_up=False)
        whole.by_one_process(whole.run, folder / "output")
        yield whole


@contextmanager
def made_up() -> Iterator[Whole]:
    """The same for fewer samples and one worker with the made-up model, which takes time, and no CPU time."""
    with scratch() as folder:
        data = write_dataset(folder / "data", FEW_SAMPLES, missing=None)
        call = ["extract", data, "--model", "made-up", "--commit-seconds", "0"]
        whole = Whole(call, folder / "run", workers=1, made_up=True)
        whole.by_one_process(whole.run, folder / "output")
        yield whole


def repeated(
    attempt: Callable[[Whole, Path, np.random.Generator, int], Mapping[str, int]],
    make: Callable[[], AbstractContextManager[Whole]],
) -> Callable[[int, int], Outcome]:
    """The experiment that makes `attempt` with what `make` makes."""

    def run_experiment(count: int, seed: int) -> Outcome:
        with make() as whole:
            return attempts(count, seed, partial(attempt, whole))

    return run_experiment


def divide(whole: Whole, folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
    """Does four shards one after the other."""
    for shard in range(SHARDS):
        whole.by_one_process(folder / "shards", folder / "output", "--shard", f"{shard}/{SHARDS}")
    return {"rows of shards bit for bit": require_same(folder / "shards", whole.run)}


def divide_and_let_work(whole: Whole, folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
    """Does four shards one after the other, and lets two workers do everything."""
    with on_ray(whole, folder / "run", folder / "output") as command:
        pass
    require_done(command.ended)
    on_workers = {"rows of workers bit for bit": require_same(folder / "run", whole.run)}
    return {**divide(whole, folder, random, number), **on_workers}


def kill_workers(whole: Whole, folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
    """Kills a worker some time after the first commit, every other time one more later; the command still finishes."""
    run, kept, kills = folder / "run", 0, 1 + number % 2
    with on_ray(whole, run, folder / "output") as command:
        for _ in range(kills):
            time.sleep(random.uniform(0, 0.5))
            kept = len(open_run(run))
            workers = workers_of(command.process)
            workers[int(random.integers(len(workers)))].kill()
            wait_for_more(command, run, kept)
    require_done(command.ended)
    require_same(run, whole.run)
    return {"kills": kills, "rows stored before the last of them": kept}


def wait_for_more(command: Command, run: Path, rows: int) -> None:
    """Waits until the run has more rows, or the command has ended."""
    until = time.monotonic() + WAIT_S
    while is_alive(command.process) and len(open_run(run)) <= rows:
        require(time.monotonic() < until, "nothing is committed after a kill")
        time.sleep(0.05)


def stop_the_command(whole: Whole, folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
    """Stops the command some time after the first commit, whose workers commit; then one process resumes."""
    run = folder / "run"
    with on_ray(whole, run, folder / "output") as command:
        time.sleep(random.uniform(0, 1))
        command.process.terminate()
    require(command.ended.exit_code == 3, f"it ends with {command.ended.exit_code}: {command.ended.output}")
    require("What was finished is stored" in command.ended.output, command.ended.output)
    require(not any(run.glob("locks/*.working")), "a worker that was told to stop left samples in work")
    require_sound(run)
    kept = len(open_run(run))
    whole.by_one_process(run, folder / "output")
    require_same(run, whole.run)
    return {"rows stored when it stopped": kept}


@contextmanager
def on_ray(whole: Whole, run: Path, output: Path) -> Iterator[Command]:
    """The call by workers, from its first commit on; requires that nothing is left of Ray when it has ended."""
    token = Path.home() / ".ray"
    had_token = token.exists()
    process = whole.start(run, output, "--ray", "--workers", whole.workers)
    assert process.pid is not None
    try:
        command = wait_for_a_commit(psutil.Process(process.pid), whole.workers, run, output)
        every = command.process.children(recursive=True)
        heard = {at for one in every for at in listening(one)}
        require(bool(heard) and heard <= {*LOOPBACK}, f"Ray listens at {heard}")
        require(command.folder.stat().st_mode & 0o077 == 0, f"other users can enter {command.folder}")
        yield command
    except BaseException:
        process.kill()  # Ray's processes end with it
        raise
    command.ended = wait_for(process, output, WAIT_S)
    left = [one for one in psutil.process_iter() if str(command.folder) in " ".join([words_of(one), *opened_by(one)])]
    require(not left, f"processes are left: {left}")
    require(not command.folder.exists(), f"{command.folder} is left")
    require(token.exists() == had_token, f"{token} was written")


def wait_for_a_commit(process: psutil.Process, workers: int, run: Path, output: Path) -> Command:
    """The command, as soon as it has all its workers and something is committed."""
    until = time.monotonic() + WAIT_S
    while is_alive(process):
        require(time.monotonic() < until, "nothing is committed")
        if len(workers_of(process)) == workers and any(run.glob("parts/*.json")):
            words = " ".join(words_of(child) for child in process.children(recursive=True))
            return Command(process, Path(re.findall(r"/\S*/midsight-ray-\w+", words)[0]))
        time.sleep(0.05)
    raise AssertionError(f"it ended: {output.read_text()}")


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The workers of the command that have a model, or load it."""
    with suppress(psutil.Error):
        children = process.children(recursive=True)
        return [child for child in children if words_of(child).startswith("ray::MapWorker")]
    return []


def require_same(path: Place, whole: Path) -> int:
    """Requires that two runs have the same rows, each once, and the same vectors but for rounding.

    Returns the number of rows whose vectors are the same bit for bit.
    """
    run, expected = open_run(path), open_run(whole)
    require(run.failures() == [], f"{len(run.failures())} samples failed")
    require(run.table().equals(expected.table()), "the rows differ from those of one process")
    equal = np.ones(len(expected), bool)
    for name in expected.vector_columns:
        vectors, wanted = run.matrix(name), expected.matrix(name)
        error = (np.linalg.norm(vectors - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max()
        require(error <= 1e-5, f"{name} is off by {error:.1e}")
        equal &= (vectors == wanted).all(axis=1)
    require_sound(path)
    return int(equal.sum())


def words_of(process: psutil.Process) -> str:
    """The command of a process; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def opened_by(process: psutil.Process) -> list[str]:
    """The files that a process has open."""
    with suppress(psutil.Error, OSError):
        return [file.path for file in process.open_files()]
    return []


def listening(process: psutil.Process) -> set[str]:
    """The addresses of this machine at which a process listens."""
    with suppress(psutil.Error):
        return {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    return set()


def require_done(ended: Ended) -> None:
    """Requires that a command did all samples."""
    require(ended.exit_code == 0, f"it ends with {ended.exit_code}: {ended.output}")


def experiment(name: str, attempt: Any, full: int, *, smaller: Any) -> Experiment:
    """An experiment with 400 samples and two workers; in `make test`, `smaller` with one and the made-up model."""
    run, small = repeated(attempt, by_one_process), repeated(smaller, made_up)
    return Experiment(GROUP, f"{SAMPLES} samples {name}", run, full, 1, small)


EXPERIMENTS = (
    experiment("in four shards, and by two workers", divide_and_let_work, 1, smaller=divide),
    experiment("by two workers, one or two of them killed", kill_workers, 10, smaller=kill_workers),
    experiment(
        "by two workers, stopped by SIGTERM, resumed without Ray", stop_the_command, 2, smaller=stop_the_command
    ),
)

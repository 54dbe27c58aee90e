"""Extractions by two workers of a Ray cluster on this machine: one is killed, or the command is stopped."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from faults.command import Ended, start, wait_for
from faults.content import require_sound
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from midsight.store import open_run
from midsight.testing import write_phi4_multimodal
from support.pictures import encoded, picture

GROUP = "On Ray"
SAMPLES = 400
SAMPLES_OF_AN_IMAGE = 4
WORKERS = 2
KILLS = 2
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
def by_one_process() -> Iterator[Whole]:
    """Makes a dataset and a run of it by one process; deletes both afterwards."""
    with scratch() as folder:
        data, checkpoint = folder / "data.jsonl", write_phi4_multimodal(folder / "checkpoint")
        rows = [{"image": f"{i // SAMPLES_OF_AN_IMAGE}.png", "question": f"What is {i}?"} for i in range(SAMPLES)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for i in range(SAMPLES // SAMPLES_OF_AN_IMAGE):
            (folder / f"{i}.png").write_bytes(encoded(picture((64, 64), i)))
        call = ["extract", data, "--model", checkpoint, *OPTIONS]
        require_done(call_of_one_process(call, folder / "run", folder / "output"))
        yield Whole(call, folder / "run")


def with_killed_workers(count: int, seed: int) -> Outcome:
    """Kills workers while they work; the other one, or a successor, does their orders again."""
    with by_one_process() as whole:
        return attempts(count, seed, partial(kill_workers, whole))


def kill_workers(whole: Whole, folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
    """Kills a worker some time after the first commit, another one after the next, and lets the command finish."""
    run, kept = folder / "run", 0
    with on_ray(whole, run, folder / "output") as command:
        for _ in range(KILLS):
            time.sleep(random.uniform(0, 0.5))
            kept = len(open_run(run))
            workers = workers_of(command.process)
            workers[int(random.integers(len(workers)))].kill()
            wait_for_more(command, run, kept)
    require_done(command.ended)
    require_same(run, whole.run)
    return {"kills": KILLS, "rows stored before the last of them": kept}


def wait_for_more(command: Command, run: Path, rows: int) -> None:
    """Waits until the run has more rows, or the command has ended."""
    until = time.monotonic() + WAIT_S
    while is_alive(command.process) and len(open_run(run)) <= rows:
        require(time.monotonic() < until, "nothing is committed after a kill")
        time.sleep(0.05)


def stopped(count: int, seed: int) -> Outcome:
    """Stops the command, whose workers commit; then one process resumes."""
    with by_one_process() as whole:
        return attempts(count, seed, partial(stop_the_command, whole))


def stop_the_command(whole: Whole, folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
    """Stops the command some time after the first commit, and resumes the run without Ray."""
    run = folder / "run"
    with on_ray(whole, run, folder / "output") as command:
        time.sleep(random.uniform(0, 1))
        command.process.terminate()
    require(command.ended.exit_code == 3, f"it ends with {command.ended.exit_code}: {command.ended.output}")
    require("What was finished is stored" in command.ended.output, command.ended.output)
    require(not any(run.glob("locks/*.working")), "a worker that was told to stop left samples in work")
    require_sound(run)
    kept = len(open_run(run))
    require_done(call_of_one_process(whole.call, run, folder / "output"))
    require_same(run, whole.run)
    return {"rows stored when it stopped": kept}


@contextmanager
def on_ray(whole: Whole, run: Path, output: Path) -> Iterator[Command]:
    """The call by two workers, from its first commit on; requires that nothing is left of Ray when it has ended."""
    token = Path.home() / ".ray"
    had_token = token.exists()
    call = [*whole.call, "--out", run, "--ray", "--workers", WORKERS]
    process = start(call, output, made_up=False)
    assert process.pid is not None
    try:
        command = wait_for_a_commit(psutil.Process(process.pid), run, output)
        every = command.process.children(recursive=True)
        heard = {at for one in every for at in listening(one)}
        require(bool(heard) and heard <= {*LOOPBACK}, f"Ray listens at {heard}")
        yield command
    except BaseException:
        process.kill()  # Ray's processes end with it
        raise
    command.ended = wait_for(process, output, WAIT_S)
    left = [one for one in psutil.process_iter() if str(command.folder) in " ".join([words_of(one), *opened_by(one)])]
    require(not left, f"processes are left: {left}")
    require(not command.folder.exists(), f"{command.folder} is left")
    require(token.exists() == had_token, f"{token} was written")


def wait_for_a_commit(process: psutil.Process, run: Path, output: Path) -> Command:
    """The command, as soon as it has all its workers and something is committed."""
    until = time.monotonic() + WAIT_S
    while is_alive(process):
        require(time.monotonic() < until, "nothing is committed")
        if len(workers_of(process)) == WORKERS and any(run.glob("parts/*.json")):
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


def require_same(path: Path, whole: Path) -> None:
    """Requires that two runs have the same rows, each once, and the same vectors but for rounding."""
    run, expected = open_run(path), open_run(whole)
    require(run.failures() == [], f"{len(run.failures())} samples failed")
    require(run.table().equals(expected.table()), "the rows differ from those of one process")
    for name in expected.vector_columns:
        vectors, wanted = run.matrix(name), expected.matrix(name)
        error = (np.linalg.norm(vectors - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max()
        require(error <= 1e-5, f"{name} is off by {error:.1e}")
    require_sound(path)


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


def call_of_one_process(call: list[Any], run: Path, output: Path) -> Ended:
    """Makes the call without Ray."""
    return wait_for(start([*call, "--out", run], output, made_up=False), output)


def require_done(ended: Ended) -> None:
    """Requires that a command did all samples."""
    require(ended.exit_code == 0, f"it ends with {ended.exit_code}: {ended.output}")


EXPERIMENTS = (
    Experiment(GROUP, f"{SAMPLES} samples by two workers, two of them killed one by one", with_killed_workers, 5, 1),
    Experiment(GROUP, f"{SAMPLES} samples by two workers, stopped by SIGTERM, resumed without Ray", stopped, 2, 1),
)

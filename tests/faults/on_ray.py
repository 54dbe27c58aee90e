"""Extractions by two workers of a Ray cluster on this machine: one is killed, or the command is stopped."""

from __future__ import annotations

import json
import re
import signal
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
from faults.content import Content, content_of, require_complete, require_part_of, require_sound
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from midsight.store import open_run
from midsight.testing import write_phi4_multimodal
from support.pictures import encoded, picture

GROUP = "On Ray"
SAMPLES = 400
SAMPLES_OF_AN_IMAGE = 4
WORKERS = 2
# One image in a call, so that a vector has the same bits whoever computes it.
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
    content: Content
    """Content of the run of one process."""


@dataclass
class Command:
    """The call by the workers of a cluster of its own."""

    process: psutil.Process
    """The command."""
    folder: Path
    """Where Ray keeps its files."""
    workers: list[psutil.Process]
    """The workers that have a model."""
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
        yield Whole(call, content_of(folder / "run"))


def with_a_killed_worker(count: int, seed: int) -> Outcome:
    """Kills one of the workers while it works; the other one, or its successor, does its order again."""
    with by_one_process() as whole:
        return attempts(count, seed, partial(kill_a_worker, whole))


def kill_a_worker(whole: Whole, folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
    """Kills a worker some time after the first commit, and lets the command finish."""
    run = folder / "run"
    with on_ray(whole, run, folder / "output") as command:
        time.sleep(random.uniform(0, 1))
        kept = len(open_run(run))
        command.workers[int(random.integers(WORKERS))].kill()
    require_done(command.ended)
    require_complete(run, whole.content)
    return {"rows stored before the kills": kept}


def with_ctrl_c(count: int, seed: int) -> Outcome:
    """Stops the command, whose workers commit; then one process resumes."""
    with by_one_process() as whole:
        return attempts(count, seed, partial(stop_the_command, whole))


def stop_the_command(whole: Whole, folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
    """Stops the command some time after the first commit, and resumes the run without Ray."""
    run = folder / "run"
    with on_ray(whole, run, folder / "output") as command:
        time.sleep(random.uniform(0, 1))
        command.process.send_signal(signal.SIGINT)
    require(command.ended.exit_code == 3, f"it ends with {command.ended.exit_code}: {command.ended.output}")
    require("What was finished is stored" in command.ended.output, command.ended.output)
    require(not any(run.glob("locks/*.working")), "a worker that was told to stop left samples in work")
    require_part_of(run, whole.content)
    require_sound(run)
    kept = len(open_run(run))
    require_done(call_of_one_process(whole.call, run, folder / "output"))
    require_complete(run, whole.content)
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
    """The command with all its workers, as soon as something is committed."""
    until = time.monotonic() + WAIT_S
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        require(time.monotonic() < until, "nothing is committed")
        children = {child: words_of(child) for child in process.children(recursive=True)}
        workers = [child for child, words in children.items() if words.startswith("ray::MapWorker")]
        if len(workers) == WORKERS and any(run.glob("parts/*.json")):
            folders = re.findall(r"/\S*/midsight-ray-\w+", " ".join(children.values()))
            return Command(process, Path(folders[0]), workers)
        time.sleep(0.05)
    raise AssertionError(f"it ended: {output.read_text()}")


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
    Experiment(GROUP, f"{SAMPLES} samples by two workers, one of them killed", with_a_killed_worker, 10, 1),
    Experiment(GROUP, f"{SAMPLES} samples by two workers, stopped by Ctrl-C", with_ctrl_c, 10, 1),
)

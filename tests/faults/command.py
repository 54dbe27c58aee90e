"""The midsight command in processes of its own, quickly: they are forked from one that has imported everything."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from faults.injected import Fault, inject

HANGS_S = 300.0
"""After how long a command counts as one that never ends; it then prints where it is, and is killed."""

TESTS = str(Path(__file__).parents[1])
# The server that forks them takes its path and its number of threads from here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
FORKING = multiprocessing.get_context("forkserver")
"""Starts processes that have imported everything already."""
FORKING.set_forkserver_preload(["faults.imported"])


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    exit_code: int
    """Its exit code; negative, the signal that killed it."""
    said: str
    """All it printed."""


def start(arguments: list[Any], said: Path, fault: Fault | None = None, *, made_up: bool = True) -> BaseProcess:
    """The command `midsight ARGUMENTS`, started; prints into `said`. By default any --model is the made-up one."""
    process = FORKING.Process(target=run_here, args=([*map(str, arguments)], said, fault, made_up))
    process.start()
    return process


def midsight(arguments: list[Any], said: Path, fault: Fault | None = None) -> Ended:
    """The same command, to its end."""
    return ended(start(arguments, said, fault), said)


def ended(process: BaseProcess, said: Path) -> Ended:
    """How a process of `start` ended; waits for it, and kills it where it hangs."""
    process.join(HANGS_S + 10)
    if process.is_alive():
        process.kill()
        process.join()
    exit_code = process.exitcode
    process.close()
    assert exit_code is not None
    return Ended(exit_code, said.read_text() if said.exists() else "")


def run_here(arguments: list[str], said: Path, fault: Fault | None = None, made_up: bool = True) -> None:
    """The command in this process, which ends with its exit code."""
    # Not above: the process that starts this one needs none of it.
    from faults.made_up_model import made_up_model, stand_in
    from midsight import cli
    from midsight.extraction import model

    sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(sink, stream)
    faulthandler.dump_traceback_later(HANGS_S, file=sink)
    if made_up:
        stand_in()
        model.load = lambda *_, **__: made_up_model()
    if fault is not None:
        inject(fault)
    sys.argv = ["midsight", *arguments]
    cli.main()


def extract_call(data: Path, run: Path) -> list[Any]:
    """The arguments of an extraction that commits after every image."""
    return ["extract", data, "--model", "made-up", "--out", run, "--commit-seconds", "0"]

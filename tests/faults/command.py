"""Runs the midsight command in new processes, which start fast: they are forked after all imports."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.injected import Fault, inject

if TYPE_CHECKING:
    from faults.made_up_model import Behaviour

TIMEOUT_S = 300.0
"""Timeout of a command, in seconds: it then prints a traceback and is killed."""

TESTS = str(Path(__file__).parents[1])
# The fork server inherits its path and its number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
FORKING = multiprocessing.get_context("forkserver")
"""Starts processes in which everything is imported already."""
FORKING.set_forkserver_preload(["faults.imported"])


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    exit_code: int
    """Its exit code; for a killed process, minus the signal's number."""
    output: str
    """Everything it printed."""


def start(
    arguments: list[Any],
    output: Path,
    fault: Fault | None = None,
    *,
    made_up: bool = True,
    behaviour: Behaviour | None = None,
    usage: Path | None = None,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """Starts the command `midsight ARGUMENTS`, which prints into the file `output`.

    With `made_up` every --model is the made-up model. At its end the command writes what it took into the file `usage`.
    `prepare` is called in the new process first.
    """
    words = [*map(str, arguments)]
    process = FORKING.Process(target=run_here, args=(words, output, fault, made_up, behaviour, usage, prepare))
    process.start()
    return process


def run_command(arguments: list[Any], output: Path, fault: Fault | None = None) -> Ended:
    """Runs the same command to its end."""
    return wait_for(start(arguments, output, fault), output)


def wait_for(process: BaseProcess, output: Path, timeout_s: float = TIMEOUT_S) -> Ended:
    """Waits until a process of `start` ends, and kills it after the timeout."""
    process.join(timeout_s + 10)
    if process.is_alive():
        process.kill()
        process.join()
    exit_code = process.exitcode
    process.close()
    assert exit_code is not None
    return Ended(exit_code, output.read_text() if output.exists() else "")


def run_here(
    arguments: list[str],
    output: Path,
    fault: Fault | None = None,
    made_up: bool = True,
    behaviour: Behaviour | None = None,
    usage: Path | None = None,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Runs the command in this process, which ends with the command's exit code."""
    # Imported here, because the parent process does not need them.
    from faults.made_up_model import Behaviour, load_made_up_models, replace_forward_pass
    from faults.usage import Meter
    from midsight import cli

    sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(sink, stream)
    faulthandler.dump_traceback_later(TIMEOUT_S, file=sink)
    if prepare is not None:
        prepare()
    if made_up:
        replace_forward_pass(behaviour or Behaviour())
        load_made_up_models()
    if fault is not None:
        inject(fault)
    sys.argv = ["midsight", *arguments]
    meter = Meter()
    try:
        cli.main()
    finally:
        if usage is not None:
            usage.write_text(json.dumps(asdict(meter.read())))


def extract_arguments(data: Path, run: Path) -> list[Any]:
    """The arguments of an extraction that commits after every image."""
    return ["extract", data, "--model", "made-up", "--out", run, "--commit-seconds", "0"]

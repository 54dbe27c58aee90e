"""How a command ends: its exit code, and an error as one sentence."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from midsight.buckets.path import Place, to_place
from midsight.errors import MidsightError
from midsight.extraction.stopping import handling_signals
from midsight.flags import as_flag

DONE, SOME_FAILED, WRONG_CALL, STOPPED = 0, 1, 2, 3

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def stopped(run: str | Place | None) -> str:
    """What a user should know after a signal, if the command writes a run."""
    if run is None:
        return "Stopped."
    if not isinstance(place := to_place(run), Path):  # a signal's handler does not wait for a network
        return "Stopped. What was committed is stored; the same command resumes from there."
    if any((place / "parts").glob("*.json")):
        return "Stopped. What was finished is stored; the same command resumes from there."
    return "Stopped before anything was stored; the same command starts again."


@contextmanager
def reported_errors(*, debug: bool, run: str | Place | None = None) -> Iterator[None]:
    """Turns errors into one sentence and an exit code; `debug` adds the traceback, `run` is the run that is written."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with handling_signals(signal.default_int_handler):
            yield
    except KeyboardInterrupt:
        errors.print(stopped(run))
        raise typer.Exit(STOPPED) from None
    except MidsightError as error:
        if debug:
            traceback.print_exc()
        errors.print(f"Error: {error.sentence(as_flag)}", markup=False)
        raise typer.Exit(STOPPED if error.resumable else WRONG_CALL) from None

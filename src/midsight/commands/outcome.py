"""How a command ends: its exit code, and an error as one sentence."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from midsight.errors import MidsightError
from midsight.flags import as_flag

DONE, SOME_FAILED, WRONG_CALL, STOPPED = 0, 1, 2, 3

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@contextmanager
def reported_errors(*, debug: bool) -> Iterator[None]:
    """Turns errors into one sentence and an exit code; `debug` adds the traceback."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        errors.print("Stopped. What was finished is stored; the same command resumes from there.")
        raise typer.Exit(STOPPED) from None
    except MidsightError as error:
        if debug:
            traceback.print_exc()
        errors.print(f"Error: {error.sentence(as_flag)}", markup=False)
        raise typer.Exit(STOPPED if error.resumable else WRONG_CALL) from None

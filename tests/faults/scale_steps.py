"""One step of a long run in its own process: `python -m faults.scale_steps STEP DATA RUN` prints time and memory.

Each step first imports what the command of a user imports, and then is measured.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.usage import Meter

if TYPE_CHECKING:
    from midsight.analysis import Run
    from midsight.extraction.todo import Progress

OPTIONS: dict[str, Any] = {"answers": False, "vision": "none", "layers": [0], "positions": "query_token"}
"""Options for one vector column; the made-up model gives it width 1."""
Step = Callable[[Path, Path], dict[str, int]]
"""Takes the table and the run folder; returns counts."""


class StartedError(Exception):
    """The extraction has reached its first sample."""


def start() -> Step:
    """Runs an extraction up to its first sample, which creates the run folder."""
    extract = made_up_extraction()

    def step(data: Path, run: Path) -> dict[str, int]:
        reported: list[Progress] = []

        def stop(progress: Progress) -> None:
            reported.append(progress)
            raise StartedError

        with suppress(StartedError):
            extract(data, out=run, progress=stop, keep_going=True)
        samples = reported[0].samples
        assert samples is not None, "the number of rows of a table is known"
        return {"samples": samples, "already": reported[0].already}

    return step


def resume() -> Step:
    """Runs the same extraction to its end."""
    extract = made_up_extraction()
    return lambda data, run: {"rows": len(extract(data, out=run))}


def made_up_extraction() -> Callable[..., Run]:
    """`midsight.extract` with a made-up model; the classes of no real one are imported."""
    from faults.made_up_model import Behaviour, made_up_model, replace_forward_pass
    from midsight.extraction.run import extract

    replace_forward_pass(Behaviour())
    return partial(extract, model=made_up_model(width=1), **OPTIONS)


def show() -> Step:
    """Does what `midsight show RUN` does, without printing."""
    from rich.console import Console

    from midsight.reports.summary import summarise
    from midsight.reports.terminal import render_summary
    from midsight.store import open_run

    def step(data: Path, run: Path) -> dict[str, int]:
        summary = summarise(open_run(run))
        Console(file=io.StringIO()).print(render_summary(summary))
        return {"rows": summary.rows}

    return step


def open_() -> Step:
    """Opens the run."""
    from midsight.store import open_run

    def step(data: Path, run: Path) -> dict[str, int]:
        opened = open_run(run)
        return {"rows": len(opened), "commits": len(opened.commits)}

    return step


STEPS: dict[str, Callable[[], Step]] = {"start": start, "resume": resume, "show": show, "open": open_}


if __name__ == "__main__":
    measured_step = STEPS[sys.argv[1]]()
    meter, wall = Meter(), time.perf_counter()
    counts = measured_step(Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps({**asdict(meter.read()), "wall_s": time.perf_counter() - wall, "counts": counts}))

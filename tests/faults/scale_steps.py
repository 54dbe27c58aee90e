"""One step of a long run in its own process: `python -m faults.scale_steps STEP DATA RUN` prints time and memory."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from faults.made_up_model import Behaviour, made_up_model, replace_forward_pass
from faults.usage import Meter
from midsight.extraction.run import Progress, extract
from midsight.reports.summary import summarise
from midsight.reports.terminal import render_summary
from midsight.store import open_run

OPTIONS: dict[str, Any] = {"answers": False, "vision": "none", "layers": [0], "positions": "query_token"}
"""Options for one vector column; the made-up model gives it width 1."""


class StartedError(Exception):
    """The extraction has reached its first sample."""


def start(data: Path, run: Path) -> dict[str, int]:
    """Runs an extraction up to its first sample, which creates the run folder."""
    reported: list[Progress] = []

    def stop(progress: Progress) -> None:
        reported.append(progress)
        raise StartedError

    with suppress(StartedError):
        extract(data, model=made_up_model(width=1), out=run, progress=stop, keep_going=True, **OPTIONS)
    samples = reported[0].samples
    assert samples is not None, "the number of rows of a table is known"
    return {"samples": samples, "already": reported[0].already}


def resume(data: Path, run: Path) -> dict[str, int]:
    """Runs the same extraction to its end."""
    return {"rows": len(extract(data, model=made_up_model(width=1), out=run, **OPTIONS))}


def show(data: Path, run: Path) -> dict[str, int]:
    """Does what `midsight show RUN` does, without printing."""
    summary = summarise(open_run(run))
    Console(file=io.StringIO()).print(render_summary(summary))
    return {"rows": summary.rows}


def open_(data: Path, run: Path) -> dict[str, int]:
    """Opens the run."""
    opened = open_run(run)
    return {"rows": len(opened), "commits": len(opened.commits)}


STEPS: dict[str, Callable[[Path, Path], dict[str, int]]] = {
    "start": start,
    "resume": resume,
    "show": show,
    "open": open_,
}


if __name__ == "__main__":
    replace_forward_pass(Behaviour())
    meter, wall = Meter(), time.perf_counter()
    counts = STEPS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps({**asdict(meter.read()), "wall_s": time.perf_counter() - wall, "counts": counts}))

"""One step of a long run in a process of its own: `python -m faults.scale_steps STEP DATA RUN` prints what it took."""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from faults.made_up_model import made_up_model, stand_in
from midsight.extraction.run import Progress, extract
from midsight.reports.summary import summarise
from midsight.reports.terminal import render_summary
from midsight.store import open_run

OPTIONS: dict[str, Any] = {"answers": False, "vision": "none", "layers": [0], "positions": "query_token"}
"""One vector column; the made-up model makes it one number wide."""


class PlannedError(Exception):
    """Everything before the first sample is done."""


def plan(data: Path, run: Path) -> dict[str, int]:
    """Everything an extraction does before its first sample; a run that is not there yet is begun."""
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        raise PlannedError

    with suppress(PlannedError):
        extract(data, model=made_up_model(width=1), out=run, on_progress=stop, **OPTIONS)
    samples = seen[0].samples
    assert samples is not None, "a table's rows are counted"
    return {"samples": samples, "already": seen[0].already}


def resume(data: Path, run: Path) -> dict[str, int]:
    """The same extraction to its end."""
    return {"rows": len(extract(data, model=made_up_model(width=1), out=run, **OPTIONS))}


def show(data: Path, run: Path) -> dict[str, int]:
    """What `midsight show RUN` does, printed into nothing."""
    summary = summarise(open_run(run))
    Console(file=io.StringIO()).print(render_summary(summary))
    return {"rows": summary.rows}


def open_(data: Path, run: Path) -> dict[str, int]:
    """`midsight.open_run`."""
    opened = open_run(run)
    return {"rows": len(opened), "commits": len(opened.commits)}


def peak_bytes() -> int:
    """The most memory that this process had at once; where Linux tells it, without that of the process before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


STEPS: dict[str, Callable[[Path, Path], dict[str, int]]] = {"plan": plan, "resume": resume, "show": show, "open": open_}


if __name__ == "__main__":
    stand_in()
    imported = peak_bytes()
    wall, work = time.perf_counter(), time.process_time()
    counts = STEPS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    took = {"wall_s": time.perf_counter() - wall, "work_s": time.process_time() - work}
    print(json.dumps({**took, "imported_bytes": imported, "peak_bytes": peak_bytes(), "counts": counts}))

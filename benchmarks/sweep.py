"""The default batch size against fixed ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.data import Row
from benchmarks.measure import Measured, Task

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
STARTING_CALLS = 2
"""Calls in which `auto` finds its size."""


def measure_sweep(size: str, device: str, rows: Sequence[Row], measure: Callable[[Task], Measured]) -> dict[str, Any]:
    """Samples per second of midsight by batch size; for `auto` also those after the first two calls."""
    speeds: dict[str, float] = {}
    for batch_size in ("auto", *SIZES):
        took = measure(Task("midsight", size, device, list(rows), batch_size))
        speeds[str(batch_size)] = len(rows) / took.seconds
        print(
            f"batch size {batch_size}: {len(rows) / took.seconds:.3g} samples per second", file=sys.stderr, flush=True
        )
        if batch_size == "auto":
            later = took.calls[STARTING_CALLS:] or took.calls
            speeds["auto, later"] = sum(call[0] for call in later) / sum(call[1] for call in later)
    return {"samples": len(rows), "speeds": speeds}

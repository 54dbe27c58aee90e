"""The default batch size against fixed ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.data import Row, cross_section
from benchmarks.measure import Measured, Task

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
STARTING_CALLS = 2
"""Calls in which `auto` finds its size."""
LEAST_SAMPLES, LEAST_CALLS = 24, 2
"""A fixed size gets so many samples and calls, or all samples if they share images."""


def measure_sweep(size: str, device: str, rows: Sequence[Row], measure: Callable[[Task], Measured]) -> dict[str, Any]:
    """Samples per second in midsight's calls of the model, by batch size; for `auto` also after the first two calls."""
    speeds: dict[str, float] = {}
    for batch_size in ("auto", *SIZES):
        some = rows if batch_size == "auto" else enough(rows, int(batch_size))
        calls = measure(Task("midsight", size, device, list(some), batch_size)).calls
        speeds[str(batch_size)] = speed_of(calls)
        print(f"batch size {batch_size}: {speed_of(calls):.3g} samples per second", file=sys.stderr, flush=True)
        if batch_size == "auto":
            speeds["auto, later"] = speed_of(calls[STARTING_CALLS:] or calls)
    return {"samples": len(rows), "speeds": speeds}


def enough(rows: Sequence[Row], batch_size: int) -> Sequence[Row]:
    """The rows that tell the speed of a fixed batch size: a cross-section of them if every image has one question."""
    count = max(LEAST_SAMPLES, LEAST_CALLS * batch_size)
    shares_images = len({row.image for row in rows}) < len(rows)
    return rows if shares_images or count >= len(rows) else cross_section(rows, count)


def speed_of(calls: Sequence[tuple[int, float, int]]) -> float:
    """Samples per second of some calls."""
    return sum(samples for samples, _, _ in calls) / sum(seconds for _, seconds, _ in calls)

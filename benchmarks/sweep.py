"""The default batch size against fixed ones."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.data import Row, cross_section
from benchmarks.measure import CallMade, Measured, Task

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
STARTING_CALLS = 2
"""Calls in which `auto` finds its size."""
LEAST_SAMPLES, LEAST_CALLS = 24, 2
"""Samples and calls of a fixed size that does not get all samples."""


def measure_sweep(size: str, device: str, rows: Sequence[Row], measure: Callable[[Task], Measured]) -> dict[str, Any]:
    """Samples per second in midsight's calls of the model, by batch size; for `auto` also after the first two calls."""
    speeds: dict[str, float] = {}
    for batch_size in ("auto", *SIZES):
        some = rows if batch_size == "auto" else enough(rows, int(batch_size))
        calls = measure(Task("midsight", size, device, list(some), batch_size)).calls
        speeds[str(batch_size)] = speed_of(calls, of=calls)
        print(f"batch size {batch_size}: {speeds[str(batch_size)]:.3g} samples per second", file=sys.stderr, flush=True)
        if batch_size == "auto":
            speeds["auto, later"] = speed_of(calls[STARTING_CALLS:] or calls, of=calls)
    return {"samples": len(rows), "speeds": speeds}


def enough(rows: Sequence[Row], batch_size: int) -> Sequence[Row]:
    """The rows that tell the speed of a fixed batch size.

    A cross-section of them if every image has one question; the first images if an image has more questions than a
    call; else all.
    """
    count = max(LEAST_SAMPLES, LEAST_CALLS * batch_size)
    most_questions = max(Counter(row.image for row in rows).values())
    if count >= len(rows) or 1 < most_questions <= batch_size:
        return rows
    if most_questions == 1:
        return cross_section(rows, count)
    images = {row.image for row in rows[:count]}
    return [row for row in rows if row.image in images]


def speed_of(some: Sequence[CallMade], *, of: Sequence[CallMade]) -> float:
    """Samples per second of some calls, if their samples had the mean length of all: short ones come first."""
    samples_per_token = sum(samples for samples, *_ in of) / sum(tokens for *_, tokens in of)
    return samples_per_token * sum(tokens for *_, tokens in some) / sum(seconds for _, seconds, *_ in some)

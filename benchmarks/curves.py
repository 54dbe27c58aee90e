"""Cost per question against questions per image, and against new tokens."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.data import DRAWN_PX, ask, write_drawn
from benchmarks.measure import Measured, Procedure, Task

QUESTIONS_PER_IMAGE = (1, 2, 5, 10, 20)
NEW_TOKENS = (1, 20, 200)
IMAGES = 4
FIXED_NEW_TOKENS = 20
"""Maximum number of new tokens while the questions per image change."""


def measure_curves(size: str, device: str, measure: Callable[[Task], Measured]) -> list[dict[str, Any]]:
    """The points of both curves.

    The original does not share work between questions, so its cost per question is measured once.
    """
    points = []

    def add(curve: str, x: int, procedure: Procedure, task: Task) -> None:
        seconds = measure(task).seconds / len(task.rows)
        points.append({"curve": curve, "x": x, "procedure": procedure, "seconds": seconds, "samples": len(task.rows)})
        print(f"{curve} {x}: {procedure} {seconds:.3f} s per question", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        images = write_drawn(Path(folder), [DRAWN_PX] * IMAGES)
        for count in QUESTIONS_PER_IMAGE:
            rows = ask(images, count, FIXED_NEW_TOKENS)
            add("questions per image", count, "midsight", Task("midsight", size, device, rows, "auto"))
            if count == 1:
                add("questions per image", count, "original", Task("original", size, device, rows, "auto"))
        for tokens in NEW_TOKENS:
            rows = [replace(row, new_tokens=tokens) for row in ask(images, 1, FIXED_NEW_TOKENS)]
            for procedure in ("midsight", "original"):
                add("new tokens", tokens, procedure, Task(procedure, size, device, rows, "auto"))
    return points

"""The cases that are timed, with their target ratios."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.data import Row, distinct, mixed_sizes, ten_drawn, ten_easy_vqa

Size = Literal["demo", "mid", "full"]


@dataclass(frozen=True)
class Case:
    """A dataset, the length of its answers, and the target speed-up."""

    size: Size
    """Size of the model."""
    name: str
    """Name of the row in the table."""
    rows: Callable[[Path, int, int], list[Row]]
    """Makes the samples from: folder for images, number of samples, maximum number of new tokens."""
    count: int
    """Number of samples that midsight extracts: enough that the start of `auto` is a small part."""
    count_of_others: int
    """Number of samples for the other procedures, whose speed does not depend on it: a cross-section of all."""
    new_tokens: int
    """Maximum number of new tokens; 0 for no answers."""
    batch_size: int
    """Batch size of plain batches; midsight has its default."""
    target: float | None = None
    """Target ratio to the original's speed; None without a target."""
    sweep_count: int | None = None
    """Number of samples in a sweep, more than the first calls of `auto` take; None for `count`."""


CASES = (
    Case("mid", "distinct images, 20 new tokens", distinct, 120, 16, 20, 8, 3.2, sweep_count=160),
    Case("mid", "10 questions per image, 20 new tokens", ten_drawn, 120, 16, 20, 8, 25.0),
    Case("mid", "10 questions per image (easy-vqa), 20 new tokens", ten_easy_vqa, 120, 16, 20, 16, 15.0),
    Case("mid", "mixed sizes, no answers", mixed_sizes, 120, 16, 0, 8, 2.1, sweep_count=32),
    Case(
        "demo",
        "10 questions per image (easy-vqa), 5 new tokens",
        ten_easy_vqa,
        120,
        40,
        5,
        40,
        10.0,
        sweep_count=960,
    ),
    Case("full", "distinct images, 20 new tokens", distinct, 256, 16, 20, 16, 10.0),
    Case("full", "distinct images, 200 new tokens", distinct, 256, 16, 200, 16, 10.0),
    Case("full", "10 questions per image, 20 new tokens", ten_drawn, 640, 16, 20, 16, 40.0),
)
"""Images have 640 x 480 pixels unless the name says otherwise."""

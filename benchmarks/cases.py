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
    """Number of samples, the same for every procedure."""
    new_tokens: int
    """Maximum number of new tokens; 0 for no answers."""
    batch_size: int
    """Batch size of plain batches, and of midsight unless the command line gives another."""
    target: float | None = None
    """Target ratio to the original's speed; None without a target."""
    by_default: bool = True
    """Whether the case runs if the command line names no case."""


CASES = (
    Case("mid", "distinct images, 20 new tokens", distinct, 8, 20, 8, 3.0),
    Case("mid", "10 questions per image (easy-vqa), 20 new tokens", ten_easy_vqa, 40, 20, 40, 15.0),
    Case("mid", "10 questions per image of 640 x 480, 20 new tokens", ten_drawn, 20, 20, 20, 15.0, by_default=False),
    Case("mid", "mixed sizes, no answers", mixed_sizes, 8, 0, 8, 1.9),
    Case("demo", "10 questions per image (easy-vqa), 5 new tokens", ten_easy_vqa, 120, 5, 40, 10.0),
    Case("full", "distinct images, 20 new tokens", distinct, 64, 20, 32, 10.0),
    Case("full", "distinct images, 200 new tokens", distinct, 64, 200, 32, 10.0),
    Case("full", "10 questions per image of 640 x 480, 20 new tokens", ten_drawn, 160, 20, 80, 40.0),
)

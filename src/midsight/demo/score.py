"""Answers against references: shares that are right, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CONFIDENT = 1.959964
"""Standard deviations that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Share:
    """How many of some questions were answered rightly."""

    right: int
    """Answered rightly."""
    asked: int
    """Asked, at least one."""

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, questions taken as independent.

        >>> tuple(round(end, 3) for end in Share(8, 10).interval)
        (0.49, 0.943)
        """
        z2 = CONFIDENT**2
        middle = (self.right + z2 / 2) / (self.asked + z2)
        half = CONFIDENT * math.sqrt(self.right * (self.asked - self.right) / self.asked + z2 / 4) / (self.asked + z2)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def is_right(answer: str, references: Iterable[str]) -> bool:
    """Whether an answer is one of the references, but for white space around it."""
    return answer.strip() in references


def by_kind(rows: Iterable[Mapping[str, Any]]) -> dict[str, Share]:
    """The share of each kind of question in a run's rows, kinds in alphabetical order, `all` last."""
    marks: dict[str, list[bool]] = {}
    for row in rows:
        right = is_right(row["answer"], row["reference_answers"])
        marks.setdefault(row["kind"], []).append(right)
    everything = [mark for of_kind in marks.values() for mark in of_kind]
    shares = {kind: Share(sum(marks[kind]), len(marks[kind])) for kind in sorted(marks)}
    return shares | ({"all": Share(sum(everything), len(everything))} if everything else {})

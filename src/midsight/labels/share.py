"""Shares of right answers, with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959964
"""Half-width of the interval that holds 95 % of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class Share:
    """A number of right answers among a number of questions."""

    right: int
    """Number of right answers."""
    asked: int
    """Number of questions, at least one."""

    @property
    def value(self) -> float:
        """The share, from 0 to 1."""
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, as if questions were independent.

        >>> tuple(round(end, 3) for end in Share(8, 10).interval)
        (0.49, 0.943)
        """
        z2 = Z_95**2
        middle = (self.right + z2 / 2) / (self.asked + z2)
        half = Z_95 * math.sqrt(self.right * (self.asked - self.right) / self.asked + z2 / 4) / (self.asked + z2)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"

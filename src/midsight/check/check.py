"""One check: what was compared, its figure, and its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Unit = Literal["relative error", "count", "share", "nats"]
"""What a figure is: ||a - b|| / ||b||, a number of differences, a share from 0 to 1, or a difference of logarithms."""


@dataclass(frozen=True)
class Check:
    """What was compared, and how far the two sides are apart."""

    name: str
    """What was compared with what."""
    figure: float
    """The largest difference over the samples, or a number of differences; NaN if the comparison raised."""
    limit: float
    """The largest figure that passes; for a check that `must_differ`, the smallest."""
    must_differ: bool = False
    """Whether the two sides have to differ, as with the LoRA on and off."""
    unit: Unit = "relative error"
    """What the figure is."""
    error: str = ""
    """Why there is no figure; empty if there is one."""

    @property
    def passed(self) -> bool:
        """Whether the figure keeps to the limit; a figure that is not finite never does."""
        if not math.isfinite(self.figure):
            return False
        return self.figure >= self.limit if self.must_differ else self.figure <= self.limit


def count(name: str, differences: float) -> Check:
    """A check that counts differences, of which there must be none."""
    return Check(name, differences, 0, unit="count")

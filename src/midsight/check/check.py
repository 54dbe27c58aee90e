"""One check: what was compared, its figure, and its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """What was compared, and how far the two sides are apart."""

    name: str
    """What was compared."""
    figure: float
    """Largest relative error ||a - b|| / ||b|| over the samples; or a count of differences."""
    limit: float
    """The largest figure that passes; for a check that `must_differ`, the smallest."""
    must_differ: bool = False
    """Whether the two sides have to differ, as with the LoRA on and off."""

    @property
    def passed(self) -> bool:
        """Whether the figure keeps to the limit; a figure that is not finite never does."""
        if not math.isfinite(self.figure):
            return False
        return self.figure >= self.limit if self.must_differ else self.figure <= self.limit

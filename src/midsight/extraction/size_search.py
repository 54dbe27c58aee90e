"""The search of `auto` for the fastest batch size: sizes are tried in powers of two, from the first one on."""

from __future__ import annotations

from dataclasses import dataclass, replace

GAIN = 1.05
"""A size is better if its calls are this much faster."""
ALIKE = 1.25
"""Speeds are compared if the mean tokens per sample of two calls differ by less, and their sizes by more."""
TRIES = 2
"""Calls after which a size counts as not better: other work on the machine only makes calls slower."""
LONGEST_S = 300.0
"""Calls do not grow if the next size would take longer, because what a call has computed is stored at its end."""


@dataclass(frozen=True)
class Trial:
    """The fastest call of one size."""

    samples: int
    """The size: the maximum number of samples."""
    held: int
    """The number of samples in that call."""
    tokens: int
    """Its tokens, padding not counted."""
    seconds: float
    """Its time."""
    calls: int = 1
    """Number of calls of this size."""

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / max(self.seconds, 1e-9)

    def can_be_compared(self, other: Trial) -> bool:
        """Whether both calls held samples of similar length, and one of them more samples."""
        lengths = sorted([self.tokens / self.held, other.tokens / other.held])
        few, many = sorted([self.held, other.held])
        return lengths[1] <= ALIKE * lengths[0] and many > ALIKE * few


@dataclass
class SizeSearch:
    """Which size comes next, given how fast the calls were. Sizes grow first, and shrink if growing does not pay."""

    samples: int
    """The size to use."""
    most_samples: int
    """Largest size."""
    best: Trial | None = None
    """The fastest size before the one that is tried."""
    trial: Trial | None = None
    """The size that is tried, as far as its calls are done."""
    shrinks: bool = False
    """Whether smaller sizes are tried, because a larger one than the first is not better, or too large."""
    is_settled: bool = False
    """Whether the search is over."""

    def __post_init__(self) -> None:
        self._first = self.samples

    def add(self, samples: int, tokens: int, seconds: float) -> None:
        """Learns from a call of `samples` samples with this many tokens, padding not counted, and sets the next size.

        A call of less than half the size says nothing about it.
        """
        if self.is_settled or 2 * samples < self.samples:
            return
        seen = Trial(self.samples, samples, tokens, seconds)
        if self.trial is not None:
            fastest = max(self.trial, seen, key=lambda trial: trial.speed)
            seen = replace(fastest, calls=self.trial.calls + 1)
        self.trial = seen
        if self.best is None and not self._may_grow(seen) and seen.calls < TRIES:
            return  # the first call of a process is slower than others of its size, which smaller ones would beat
        if self.best is None or self._is_better(seen, self.best):
            self._go_on(seen)
        elif seen.calls == TRIES:
            self._turn_back(self.best)

    def _is_better(self, seen: Trial, best: Trial) -> bool:
        """Whether a size is faster; where the two cannot be compared, the larger one is the better guess."""
        return seen.speed >= GAIN * best.speed if seen.can_be_compared(best) else not self.shrinks

    def _may_grow(self, best: Trial) -> bool:
        return 2 * best.samples <= self.most_samples and 2 * best.seconds <= LONGEST_S

    def _go_on(self, best: Trial) -> None:
        may_grow = self._may_grow(best)
        self.shrinks = self.shrinks or (not may_grow and best.samples == self._first)
        following = best.samples // 2 if self.shrinks else 2 * best.samples
        is_possible = following >= 1 if self.shrinks else may_grow
        self.best, self.trial, self.is_settled = best, None, not is_possible
        self.samples = following if is_possible else best.samples

    def _turn_back(self, best: Trial) -> None:
        self.shrinks = not self.shrinks and best.samples == self._first > 1
        self.samples = best.samples // 2 if self.shrinks else best.samples
        self.trial, self.is_settled = None, not self.shrinks

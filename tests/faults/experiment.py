"""An experiment breaks something on purpose, many times, and tests the same requirements each time."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """The result of an experiment."""

    tried: int
    """Number of attempts."""
    passed: int
    """Number of attempts that met every requirement."""
    note: str
    """Counts and measurements, or the first failure."""


@dataclass(frozen=True)
class Experiment:
    """One row of the table in docs/reliability.md."""

    group: str
    """Heading of its table."""
    name: str
    """What is done, in a few words."""
    run: Callable[[int, int], Outcome]
    """Takes the number of attempts and a seed."""
    full: int
    """Number of attempts in `make faults`."""
    quick: int
    """Number of attempts in `make test`."""
    smaller: Callable[[int, int], Outcome] | None = None
    """What `make test` runs instead, if an attempt at full size takes too long."""

    def run_quickly(self, seed: int) -> Outcome:
        """The experiment as `make test` runs it."""
        return (self.smaller or self.run)(self.quick, seed)


class ExperimentError(AssertionError):
    """A requirement of an experiment is not met."""


def require(holds: bool, sentence: str) -> None:
    """Raises ExperimentError with `sentence` unless `holds`."""
    if not holds:
        raise ExperimentError(sentence)


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="midsight-faults-") as folder:
        yield Path(folder)


Attempt = Callable[[Path, np.random.Generator, int], Mapping[str, int]]
"""Takes an empty folder, random numbers and the number of the attempt, from 0; returns counts for the note, by name."""


def attempts(count: int, seed: int, attempt: Attempt) -> Outcome:
    """Runs `attempt` `count` times, each time with a new folder and new random numbers."""
    counted: Counter[str] = Counter()
    problems: list[str] = []
    for number in range(count):
        with scratch() as folder:
            try:
                counted.update(attempt(folder, np.random.default_rng([seed, number]), number))
            except Exception as error:  # the table shows it; the other experiments go on
                problems.append(f"attempt {number}: {type(error).__name__}: {error}"[:1_000])
    note = ", ".join(f"{value:,} {name}" for name, value in counted.items())
    return Outcome(count, count - len(problems), problems[0] if problems else note)

"""An experiment: something is broken on purpose, so and so often, and what has to hold is checked each time."""

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
    """What came of an experiment."""

    tried: int
    """How often it was tried."""
    passed: int
    """How often everything held."""
    note: str
    """What was counted or measured on the way; the first failure, where there is one."""


@dataclass(frozen=True)
class Experiment:
    """One row of the table in docs/reliability.md."""

    group: str
    """The heading it stands under."""
    name: str
    """What is done, a few words."""
    run: Callable[[int, int], Outcome]
    """Takes a count and a seed."""
    full: int
    """The count of `make faults`."""
    quick: int
    """The count of `make test`."""


class DoesNotHoldError(AssertionError):
    """What an experiment demands, and did not find."""


def demand(holds: bool, sentence: str) -> None:
    """Raises DoesNotHoldError with `sentence` unless it holds."""
    if not holds:
        raise DoesNotHoldError(sentence)


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="midsight-faults-") as folder:
        yield Path(folder)


Attempt = Callable[[Path, np.random.Generator, int], Mapping[str, int]]
"""Takes an empty folder, random numbers and its own number, from 0; gives counts for the note, by what was counted."""


def attempts(count: int, seed: int, attempt: Attempt) -> Outcome:
    """Runs `attempt` `count` times, each in a folder of its own and with random numbers of its own."""
    counted: Counter[str] = Counter()
    problems: list[str] = []
    for number in range(count):
        with scratch() as folder:
            try:
                counted.update(attempt(folder, np.random.default_rng([seed, number]), number))
            except Exception as error:  # a row of the table says so; the other experiments go on
                problems.append(f"attempt {number}: {type(error).__name__}: {error}"[:1_000])
    note = ", ".join(f"{value:,} {name}" for name, value in counted.items())
    return Outcome(count, count - len(problems), problems[0] if problems else note)

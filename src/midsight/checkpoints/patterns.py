"""Regular expressions of unknown origin, which may take for ever on names of an ordinary length."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from midsight.bounded_process import TooMuchError, do_bounded
from midsight.errors import MidsightError

MOST_SECONDS = 8.0
"""CPU time in which the patterns have to match all names of a model."""
LONGEST_PATTERN = 10_000
"""Characters of a pattern that is tried in this process."""
UNBOUNDED = re.compile(r"[*+]|\{\d*,\d*\}")
CHOICE = re.compile(r"[?|]")
MOST_CHOICES = 6
"""Choices in a pattern that is tried in this process; each may double the time."""
REPEATED_GROUP = re.compile(r"\)[*+{]")


def require_quick(path: Path, patterns: Iterable[str], names: Collection[str]) -> None:
    """Raises MidsightError for a pattern that takes too long on these names; `path` is the file that has it.

    Python cannot interrupt a match, so patterns that repeat much are tried in a process of their own.
    """
    slow = [pattern for pattern in patterns if may_be_slow(pattern)]
    if not slow:
        return
    try:
        do_bounded("match", seconds=MOST_SECONDS, patterns=slow, names=[*names])
    except TooMuchError as error:
        raise MidsightError(
            f"{path} has a pattern that takes too long to match the model's layers; simplify it, or merge the adapter "
            "with PEFT."
        ) from error


def may_be_slow(pattern: str) -> bool:
    """Whether a pattern repeats more than twice, repeats a group, has many choices, or is very long."""
    repeats = len(UNBOUNDED.findall(pattern)) > 2 or REPEATED_GROUP.search(pattern) is not None
    return repeats or len(CHOICE.findall(pattern)) > MOST_CHOICES or len(pattern) > LONGEST_PATTERN

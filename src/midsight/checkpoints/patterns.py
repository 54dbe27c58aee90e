"""Regular expressions of unknown origin, which may take for ever on names of an ordinary length."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from midsight.errors import MidsightError

MOST_SECONDS = 8.0
"""Time in which a pattern has to match all names of a model."""
LONGEST_PATTERN = 10_000
"""Characters of a pattern that is tried in this process."""
UNBOUNDED = re.compile(r"[*+]|\{\d*,\d*\}")
CHOICE = re.compile(r"[?|]")
MOST_CHOICES = 6
"""Choices in a pattern that is tried in this process; each may double the time."""
REPEATED_GROUP = re.compile(r"\)[*+{]")
TRIAL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        for name in names:
            re.fullmatch(pattern, name)
            re.match(rf"(.*\\.)?({pattern})$", name)
    except (re.error, OverflowError, RecursionError):
        pass
"""


def require_quick(path: Path, patterns: Iterable[str], names: Collection[str]) -> None:
    """Raises MidsightError for a pattern that takes too long on these names; `path` is the file that has it.

    Python cannot interrupt a match, so patterns that repeat much are tried in a process of their own.
    """
    slow = [pattern for pattern in patterns if may_be_slow(pattern)]
    if not slow:
        return
    try:
        subprocess.run(  # noqa: S603  (our own program; the patterns are data)
            [sys.executable, "-I", "-c", TRIAL],
            input=json.dumps([slow, [*names]]).encode(),
            timeout=MOST_SECONDS,
            capture_output=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MidsightError(
            f"{path} has a pattern that takes too long to match the model's layers; simplify it, or merge the adapter "
            "with PEFT."
        ) from error


def may_be_slow(pattern: str) -> bool:
    """Whether a pattern repeats more than twice, repeats a group, has many choices, or is very long."""
    repeats = len(UNBOUNDED.findall(pattern)) > 2 or REPEATED_GROUP.search(pattern) is not None
    return repeats or len(CHOICE.findall(pattern)) > MOST_CHOICES or len(pattern) > LONGEST_PATTERN

"""The rules of a tokenizer.json, which may take for ever on a question of an ordinary length, or make it huge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midsight.bounded_process import RaisedError, TooMuchError, do_bounded
from midsight.errors import MidsightError

RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""The parts of the file that are programs; the others are lists."""
MOST_SECONDS = 5.0
"""CPU time in which they have to take texts that are hard for patterns; ordinary ones take a tenth of a second."""
MOST_GROWTH = 100.0
"""Largest number of characters or tokens that they may make of one character."""


def validate_rules(path: Path, tokenizer: Mapping[str, Any]) -> None:
    """Raises MidsightError for rules that take too much time or memory; `path` is the file that has them.

    They are tried without the vocabulary in a process of their own, because a match of theirs cannot be interrupted.
    What else is wrong with them is said when the tokenizer is loaded.
    """
    rules = {name: tokenizer[name] for name in RULES if tokenizer.get(name) is not None}
    try:
        growth = do_bounded("tokenise", seconds=MOST_SECONDS, rules=rules, most=MOST_GROWTH)
    except RaisedError:
        return
    except TooMuchError:
        growth = float("inf")
    if growth > MOST_GROWTH:
        raise MidsightError(
            f"{path} has rules ({', '.join(rules)}) that take too much time or memory on some texts; use the "
            "tokenizer.json of the published model."
        )

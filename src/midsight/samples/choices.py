"""The choices of a multiple-choice question, as datasets store them."""

from __future__ import annotations

import ast
import string
from collections.abc import Mapping, Sequence
from typing import Any

LISTS_OF_CHOICES = ("choices", "options")
"""Columns that hold all choices in one list, also in one written as text."""

_LONGEST_LIST = 100_000
"""Longest text that is read as a list, in characters."""


def is_choice_column(name: str) -> bool:
    """Whether a column holds one choice (`A` to `Z`) or a list of all."""
    return (len(name) == 1 and name in string.ascii_uppercase) or name in LISTS_OF_CHOICES


def choices_of(cells: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    """Letter and choice, in the order of the letters, without choices that are null, NaN or blank.

    Columns `A` to `Z` win over a list; the items of a list get the letters in turn.
    """
    by_letter = [(letter, cells[letter]) for letter in string.ascii_uppercase if not _is_missing(cells.get(letter))]
    if by_letter:
        return by_letter
    listed = next((found for name in LISTS_OF_CHOICES if (found := _as_list(cells.get(name)))), [])
    numbered = listed.items() if isinstance(listed, dict) else zip(string.ascii_uppercase, listed, strict=False)
    return [(letter, choice) for letter, choice in numbered if not _is_missing(choice)]


def _as_list(value: Any) -> list[Any] | dict[str, Any] | None:
    """A list or an object, also one that is written as text, as MMMU writes it; None for anything else."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{") and len(value) <= _LONGEST_LIST:
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, list | dict) else None


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # NaN is not itself

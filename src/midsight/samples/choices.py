"""The choices of a multiple-choice question, as datasets store them."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from midsight.errors import SampleError
from midsight.samples.rows import WRITTEN_NULLS, shortened_json
from midsight.samples.written_lists import written_value

LISTS_OF_CHOICES = ("choices", "options")
"""Columns that hold all choices in one list, also in one written as text."""

_NAMED = re.compile(
    r"(?!choices|options)(?:choice|option)[ _]?(?:(?P<letter>[a-z])|(?P<number>\d{1,2}))", re.IGNORECASE
)
"""A column of one choice, such as `choice_a` of SEED-Bench, or `option1`."""


def is_choice_column(name: str) -> bool:
    """Whether a column holds one choice (`A` to `Z`, `choice_a`, `option1`) or a list of all."""
    is_letter = len(name) == 1 and name in string.ascii_uppercase
    return is_letter or name.casefold() in LISTS_OF_CHOICES or _NAMED.fullmatch(name) is not None


def choices_of(cells: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    """Letter and choice, in the order of the letters, without choices that are null, NaN or blank.

    Columns `A` to `Z` win over a list, and this over columns like `choice_a`; the items of a list get the letters in
    turn.
    """
    by_letter = [
        (letter, cells[letter]) for letter in string.ascii_uppercase if not is_missing_choice(cells.get(letter))
    ]
    if by_letter:
        return by_letter
    listed = next((found for name in _lists(cells) if (found := _as_list(cells[name]))), None)
    return [
        (letter, choice) for letter, choice in _lettered(listed or _by_name(cells)) if not is_missing_choice(choice)
    ]


def require_choices(cells: Mapping[str, Any]) -> None:
    """Raises SampleError if a column named like a list of choices holds choices that `choices_of` leaves out."""
    if any(not is_missing_choice(cells.get(letter)) for letter in string.ascii_uppercase):
        return
    given = {name: cells[name] for name in _lists(cells) if not is_missing_choice(cells[name])}
    letters = {letter for letter, _ in choices_of(cells)}
    unread = next((name for name, cell in given.items() if _as_list(cell) is None), None)
    if unread is not None and not letters:
        raise SampleError(
            f"The choices in the column {unread!r} are {shortened_json(given[unread])}, not a list; give a list, or "
            f"use {{{unread}}} in the prompt in place of mcq."
        )
    longest = max((len(listed) for cell in given.values() if isinstance(listed := _as_list(cell), list)), default=0)
    if letters <= {*string.ascii_uppercase} and longest > len(string.ascii_uppercase):
        raise SampleError(f"The sample has {longest} choices, more than there are letters; leave some out.")


def _lists(cells: Mapping[str, Any]) -> list[str]:
    """The columns of LISTS_OF_CHOICES, in this order, in upper or lower case."""
    return [name for known in LISTS_OF_CHOICES for name in cells if name.casefold() == known]


def _lettered(listed: list[Any] | dict[str, Any]) -> Sequence[tuple[str, Any]]:
    """Letter and choice; of a dict the names are the letters, unless it holds them in a list of `label`."""
    if isinstance(listed, dict):
        labels, texts = listed.get("label"), listed.get("text")
        if isinstance(labels, list) and isinstance(texts, list):
            return [*zip(map(str, labels), texts, strict=False)]
        return [*listed.items()]
    if listed and all(isinstance(item, dict) and item.keys() >= {"label", "text"} for item in listed):
        return [(str(item["label"]), item["text"]) for item in listed]
    return [*zip(string.ascii_uppercase, listed, strict=False)]


def _by_name(cells: Mapping[str, Any]) -> list[Any] | dict[str, Any]:
    """The choices in columns like `choice_a` or `option1`."""
    found = {name: match for name in cells if (match := _NAMED.fullmatch(name))}
    lettered = {match["letter"].upper(): cells[name] for name, match in found.items() if match["letter"]}
    numbered = sorted((int(match["number"]), name) for name, match in found.items() if match["number"])
    return dict(sorted(lettered.items())) or [cells[name] for _, name in numbered]


def _as_list(value: Any) -> list[Any] | dict[str, Any] | None:
    """A list or an object, also one that is written as text, as MMMU writes it; None for anything else."""
    value = written_value(value) if isinstance(value, str) else value
    return value if isinstance(value, list | dict) else None


def is_missing_choice(value: Any) -> bool:
    """Whether a cell of a choice or a hint has no value: null, NaN, blank, or a text that pandas writes for NaN."""
    return value is None or value != value or (isinstance(value, str) and value.strip() in ("", *WRITTEN_NULLS))

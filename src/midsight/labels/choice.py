"""Reads the chosen letter of a multiple-choice answer."""

from __future__ import annotations

import re

from midsight.labels.text import plain

_STATED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Z])\b\)?(?!')", re.IGNORECASE)
_OTHER_FOLLOWS = re.compile(r"\)?\s*(?:or|and|/|,|&)\s*\(?[A-Z]\b(?!')")
_SEVERAL = re.compile(rf"(?<![\w'-])[A-Z]{_OTHER_FOLLOWS.pattern}")
_MARKED = re.compile(r"\(([A-Z])\)|(?<![\w(])([A-Z])[.):](?=\s|$)|(?<![\w(])([A-Z])\)")
_LONE = re.compile(r"(?<![\w'-])([A-Z])(?![\w'-])")
_ONLY = re.compile(r"\(?([A-Za-z])\)?[.:]?")


def read_choice(answer: str) -> str | None:
    """The letter that an answer chooses.

    "(B)", "B.", "B: a cat" and "the answer is B" choose B. A lower-case letter counts only inside "answer is b" or
    as "(b)" alone, and neither the article "A" nor the pronoun "I" counts within a sentence.

    Args:
        answer: The model's answer.

    Returns:
        A capital letter; None if the answer chooses none, or several.
    """
    text = plain(answer)
    if (only := _ONLY.fullmatch(text)) and text != "a":
        return only[1].upper() if text.strip("().:").isupper() or "(" in text else None
    stated = [match for match in _STATED.finditer(text) if match[1].isupper() or match[1] != "a"]
    if _SEVERAL.search(text) or any(_OTHER_FOLLOWS.match(text, match.end()) for match in stated):
        return None
    if letter := _single({match[1].upper() for match in stated}):
        return letter
    marked = {letter for match in _MARKED.finditer(text) for letter in match.groups() if letter}
    lone = {match[1] for match in _LONE.finditer(text)} - {"A", "I"}
    return _single(marked | lone)


def reference_choice(reference: str) -> str | None:
    """The letter of a reference answer like `B` or `(b)`; None if it is not one letter."""
    match = _ONLY.fullmatch(plain(reference))
    return match[1].upper() if match else None


def _single(letters: set[str]) -> str | None:
    return letters.pop() if len(letters) == 1 else None

"""The questions of one dataset, freed of what other tools need, and what has to be said about them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from midsight.errors import SampleError
from midsight.samples.placeholders import (
    has_tag_in_line,
    looks_alike,
    role_inside,
    without_leading,
    without_turns,
)
from midsight.samples.rows import WRITTEN_NULLS, shortened_json

_PLAIN = re.compile(r"[^<\[{&!:\\]*+")
"""Text without any sign of a placeholder or of a turn."""


class Questions:
    """Makes the questions of one dataset, and counts what is unusual in them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first_alike = ""
        self._first_role = ("", "")

    def clean(self, question: str, images: int | None = None, *, place: Callable[[], str]) -> str:
        """The question of a sample; raises SampleError if it is blank or holds several turns.

        If `images` is given, placeholders before the text are left out where they say what a prompt does anyway.
        `place` names the sample's row for notes.
        """
        if _PLAIN.fullmatch(question):
            return _validated(question)
        cleaned = without_turns(question)
        self._counts["turns"] += cleaned != question
        if images is not None:
            cleaned = without_leading(cleaned, images)
        self._counts["tags"] += has_tag_in_line(_validated(cleaned))
        if alike := looks_alike(cleaned):
            self._counts["alike"] += 1
            self._first_alike = self._first_alike or alike
        if role := role_inside(cleaned):
            if not self._counts["roles"]:
                self._first_role = role, place()
            self._counts["roles"] += 1
        return cleaned

    def notes(self) -> list[str]:
        """What is to be said about the questions made so far, one sentence each."""
        alike = shortened_json(self._first_alike)
        role, place = self._first_role
        sentences = {
            "turns": "USER: before the text or ASSISTANT: after it is left out, because midsight makes the turns.",
            "tags": "<img> between words is taken as an image.",
            "roles": f"a text like {role} stays in the prompt as words, first in {place}; if it marks a turn, give the "
            "question alone.",
            "alike": f"text may stand for an image or another file, like {alike}; it stays in the prompt as words.",
        }
        return [
            f"In {self._counts[key]:,} of the questions, {text}" for key, text in sentences.items() if self._counts[key]
        ]


def _validated(question: str) -> str:
    text = question.strip()
    if not text:
        raise SampleError("the question is empty.")
    if text in WRITTEN_NULLS:
        raise SampleError(f"the question is {text!r}, as pandas writes a missing value.")
    return question

"""The questions of one dataset, freed of what other tools need, and what has to be said about them."""

from __future__ import annotations

import re
from collections import Counter

from midsight.errors import SampleError
from midsight.samples.placeholders import has_tag_in_line, looks_alike, without_leading, without_turns
from midsight.samples.rows import shortened_json

_PLAIN = re.compile(r"[^<\[{&!:\\]*+")
"""Text without any sign of a placeholder or of a turn."""


class Questions:
    """Makes the questions of one dataset, and counts what is unusual in them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first_alike = ""

    def clean(self, question: str, images: int | None = None) -> str:
        """The question of a sample; raises SampleError if it is blank or holds several turns.

        If `images` is given, placeholders before the text are left out where they say what a prompt does anyway.
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
        return cleaned

    def notes(self) -> list[str]:
        """What is to be said about the questions made so far, one sentence each."""
        alike = shortened_json(self._first_alike)
        sentences = {
            "turns": "USER: before the text or ASSISTANT: after it is left out, because midsight makes the turns.",
            "tags": "<img> between words is taken as an image.",
            "alike": f"text may stand for an image or another file, like {alike}; it stays in the prompt as words.",
        }
        return [
            f"In {self._counts[key]:,} of the questions, {text}" for key, text in sentences.items() if self._counts[key]
        ]


def _validated(question: str) -> str:
    if not question.strip():
        raise SampleError("the question is empty.")
    return question

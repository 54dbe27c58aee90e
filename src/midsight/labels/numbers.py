"""Reads the one number of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from midsight.labels.text import NUMBER_WORDS, plain

_TEENS = (
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {
    "none": 0.0,
    **{word: float(number) for number, word in enumerate((*NUMBER_WORDS, *_TEENS))},
    **{word: 10.0 * number for number, word in enumerate(_TENS, 3)},
}
_PART_OF_A_NUMBER = re.compile(
    r"(?<![a-z])(?:(?:hundred|thousand|million|billion|dozen|half|quarter|third|fifth|tenth)s?|halves)(?![a-z])"
)
_NUMERAL = re.compile(r"(?<![\w.,])([-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+\u2212]?\.\d+)(\s?%)?(?![\w%])")
_WORD = re.compile(r"[a-z]+")
_PRONOUN = re.compile(
    r"\b(?:the|this|that|no|each|every|which|another|any|some)(?: \w+)? one\b|\bone of\b|\bone another\b"
)
_NO_NOUN = re.compile(r"\bthere (?:is|are|were|was) no\b")
_RATIO = re.compile(r"\d\s*[/:]\s*\d")


@dataclass(frozen=True)
class Number:
    """A number as a text gives it."""

    value: float
    """The number in front of any percent sign."""
    percent: bool = False
    """Whether a percent sign follows."""


def read_number(text: str) -> Number | None:
    """The only number in a text, in digits or as one word up to ninety; None without one, or with several.

    Numbers of several words ("thirty-two", "2 million", "two thirds") are not read.

    >>> read_number("There are 1,200 dogs.")
    Number(value=1200.0, percent=False)
    >>> read_number("3 or 4")
    """
    lowered = plain(text).lower()
    if _RATIO.search(lowered) or _PART_OF_A_NUMBER.search(lowered):
        return None
    numerals = [Number(_to_float(match[1]), match[2] is not None) for match in _NUMERAL.finditer(lowered)]
    without_pronouns = _PRONOUN.sub(" ", lowered)
    words = [Number(_WORDS[word]) for word in _WORD.findall(without_pronouns) if word in _WORDS]
    none = [Number(0.0)] if _NO_NOUN.search(lowered) else []
    found = [*numerals, *words, *none]
    return found[0] if len(found) == 1 else None


def is_near(answer: Number, reference: Number, tolerance: float) -> bool:
    """Whether two numbers differ by at most `tolerance` times the reference.

    A percent sign on one side only may mean either 50 or 0.5; then either may match.
    """
    if answer.percent == reference.percent:
        return _within(answer.value, reference.value, tolerance)
    divided = Number(answer.value / 100) if answer.percent else answer
    target = Number(reference.value / 100) if reference.percent else reference
    return _within(answer.value, reference.value, tolerance) or _within(divided.value, target.value, tolerance)


def chartqa_correct(answer: str, reference: str) -> bool:
    """ChartQA's relaxed accuracy: within 5 % if both texts are numbers, else equal in lower case."""
    given, wanted = _chartqa_float(answer), _chartqa_float(reference)
    if given is not None and wanted:
        return abs(given - wanted) / abs(wanted) <= 0.05
    return answer.lower() == reference.lower()


def _chartqa_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _to_float(text: str) -> float:
    return float(text.replace(",", "").replace("\u2212", "-"))


def _within(value: float, reference: float, tolerance: float) -> bool:
    return abs(value - reference) <= tolerance * abs(reference) + 1e-12

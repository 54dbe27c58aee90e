"""Scores of an answer against reference answers by their words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from midsight.labels.text import plain, squad_words, vqa_form


def comparable(text: str) -> str:
    """The form in which answers are compared; a text that is nothing but an article or punctuation stays itself."""
    lowered = plain(text).lower()
    return vqa_form(lowered) or lowered


def is_equal(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer equals one of the references in comparable form."""
    return comparable(answer) in map(comparable, references)


def is_contained(answer: str, references: Sequence[str]) -> bool:
    """Whether one of the references is in the answer, as whole words in comparable form."""
    text = comparable(answer)
    return any(re.search(rf"(?<!\w){re.escape(comparable(one))}(?!\w)", text) for one in references)


def best_f1(answer: str, references: Sequence[str]) -> float:
    """SQuAD's F1 of words, the best over the references."""
    return max(_f1(squad_words(answer), squad_words(reference)) for reference in references)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))


def vqa_score(answer: str, references: Sequence[str], form: Callable[[str], str]) -> float:
    """VQA's soft accuracy: the mean of min(1, matches / 3), leaving out each of the references in turn."""
    matches = [form(reference) == form(answer) for reference in references]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)

"""Reads the chosen option of a multiple-choice answer: our rule, and VLMEvalKit's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from string import ascii_uppercase

from midsight.labels.overlap import comparable, is_contained
from midsight.labels.text import plain

Choices = Mapping[str, str]
"""The text of each option of a question, by its letter; empty if the run does not hold them."""

_STATED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-Z])\b\)?(?!')", re.IGNORECASE)
_OTHER_FOLLOWS = re.compile(r"\)?\s*(?:or|and|/|,|&)\s*\(?([A-Z])\b(?!')")
_SEVERAL = re.compile(rf"(?<![\w'-])([A-Z]){_OTHER_FOLLOWS.pattern}")
_MARKED = re.compile(r"\(([A-Z])\)|(?<![\w(])([A-Z])[.):](?=\s|$)|(?<![\w(])([A-Z])\)")
_LONE = re.compile(r"(?<![\w'-])([A-Z])(?![\w'-])")
_ONLY = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_DENIED = re.compile(r"\b(?:no|not|none|neither|nor|never|without|cannot)\b|n't\b", re.IGNORECASE)

_VLMEVALKIT_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VLMEVALKIT_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_VLMEVALKIT_STATED = re.compile(r"answer\s+is\s+\**([A-Z])\**(?![a-z])", re.IGNORECASE)


def read_choice(answer: str, choices: Choices) -> str | None:
    """The letter of the option that an answer chooses: by a letter, or else by an option's text.

    "(B)", "B.", "B: a cat" and "the answer is B" choose B. A lower-case letter counts only inside "answer is b" or
    as "(b)" alone, and neither the article "A" nor the pronoun "I" counts within a sentence. "It is a cat" chooses
    the option "cat" if no other option's text is in it, and nothing is denied.

    Args:
        answer: The model's answer.
        choices: The question's options; with them, letters of no option do not count.

    Returns:
        A capital letter; None if the answer chooses none, or several.
    """
    letters = _named_letters(plain(answer), choices or ascii_uppercase)
    return _single(letters or _named_texts(answer, choices))


def read_as_vlmevalkit(answer: str, choices: Choices) -> str | None:
    """VLMEvalKit: one option's letter among the last five words, else "answer is B", else one option's text."""
    if any(refusal in answer for refusal in _VLMEVALKIT_REFUSALS):
        return None
    words = answer.translate(_VLMEVALKIT_MARKS).split()
    letters = {letter for letter in choices if letter in words}
    if len(letters) == 1 and words.index(letter := letters.pop()) > len(words) - 5:
        return letter
    if "Z" in words and not any(letter in words for letter in choices):
        return None
    if (stated := _VLMEVALKIT_STATED.search(answer)) and stated[1].upper() in choices:
        return stated[1].upper()
    if len(answer) > 2 * sum(map(len, choices.values())):
        return None
    return _single({letter for letter, text in choices.items() if text.lower() in answer.lower()})


def reference_choice(reference: str, choices: Choices) -> str | None:
    """The letter of a reference answer like `B` or `(b)`, or of an option's text; None if it is neither."""
    match = _ONLY.fullmatch(plain(reference))
    if match and (not choices or match[1].upper() in choices):
        return match[1].upper()
    return _single({letter for letter, text in choices.items() if comparable(text) == comparable(reference)})


def _named_letters(text: str, known: Collection[str]) -> set[str]:
    """The letters that a text chooses; two of them where it hesitates."""
    if (only := _ONLY.fullmatch(text)) and text != "a":
        counts = (only[1].isupper() or "(" in text) and only[1].upper() in known
        return {only[1].upper()} if counts else set()
    stated = [match for match in _STATED.finditer(text) if match[1] != "a"]
    if several := _SEVERAL.search(text):
        return {*several.groups()}
    for match in stated:
        if other := _OTHER_FOLLOWS.match(text, match.end()):
            return {match[1].upper(), other[1]}
    letters = {match[1].upper() for match in stated if match[1].upper() in known}
    if len(letters) == 1:
        return letters
    marked = {letter for match in _MARKED.finditer(text) for letter in match.groups() if letter}
    lone = {match[1] for match in _LONE.finditer(text)} - {"A", "I"}
    return {letter for letter in marked | lone if letter in known}


def _named_texts(answer: str, choices: Choices) -> set[str]:
    """The options whose text an answer is; else those whose text is in it, if it denies nothing."""
    equal = {letter for letter, text in choices.items() if comparable(text) == comparable(answer)}
    if equal or _DENIED.search(plain(answer)):
        return equal
    return {letter for letter, text in choices.items() if is_contained(answer, [text])}


def _single(letters: set[str]) -> str | None:
    return letters.pop() if len(letters) == 1 else None

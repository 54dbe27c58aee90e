"""Reads yes or no from an answer: our rule, and those of published scorers. None is an answer that says neither."""

from __future__ import annotations

import re

from midsight.labels.text import plain, vqa_form

YES, NO = True, False

_LEAD_IN = re.compile(r"(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\s*:?|:)\s*")
_FIRST_WORD = re.compile(r"(yes|yeah|yep|true|correct|no|nope|false|incorrect)\b(?!')")
_BOTH = re.compile(r"\s*(?:,?\s*(?:and|or)\s+|/\s*)(?:yes|no|true|false)\b|\W*(?:yes|no)\W*$")
_NOT_AN_ANSWER = re.compile(r"[\s-](?:one|longer|matter|idea)\b|\.\s*\d")
_AFFIRMATIVE = ("yes", "yeah", "yep", "true", "correct")
_HEDGE = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to)\s+(?:\w+\s+)?"
    r"(?:tell|see|determine|answer|help|say|identify|assist|confirm|view)\b"
    r"|\bnot (?:\w+ )?(?:sure|clear|certain|possible|enough)\b"
    r"|\b(?:unclear|uncertain|unknown|impossible|sorry|depends)\b"
    r"|\b(?:don't|do not) know\b|\b(?:maybe|perhaps)\b"
)
_YES_WORD = re.compile(r"\byes\b")
_NO_WORD = re.compile(r"\bno\b")
_LONE_NO = re.compile(r"\bno\b(?=\s*(?:[.,;:!)]|$))(?!\.\s*\d)")
_DECLARATIVE = re.compile(
    r"(?:in (?:the|this) \w+,? )?(?:there(?:'s| is| are| was| were| isn't| aren't)|it|the|this|that|these|those|they)\b"
)
_NEGATED = re.compile(r"\b(?:no|not|none|without|never|neither|nothing|nobody)\b|n't\b")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")


def read_yes_no(answer: str, *, lenient: bool = False) -> bool | None:
    """Our rule: a leading yes or no, a lone one later, or a negated statement.

    Args:
        answer: The model's answer.
        lenient: Whether a statement without negation ("There is a dog.") is a yes.

    Returns:
        Whether the answer says yes; None if it says neither, or both.
    """
    text = plain(answer).lower()
    text = _LEAD_IN.sub("", text, count=1) if _LEAD_IN.match(text) else text
    if text.strip(".! ") in ("y", "n"):
        return text.startswith("y")
    first = _FIRST_WORD.match(text)
    if first and _BOTH.match(text, first.end()):
        return None
    if first and not (first[1] == "no" and _NOT_AN_ANSWER.match(text, first.end())):
        return first[1] in _AFFIRMATIVE
    if _HEDGE.search(text):
        return None
    said = _lone_word(text)
    return _statement(text, lenient=lenient) if said is None else said


def _lone_word(text: str) -> bool | None:
    """Yes or no if the text has only one of the two, and a `no` that does not belong to a noun."""
    has_yes, has_no = _YES_WORD.search(text), _NO_WORD.search(text)
    if has_yes:
        return None if has_no else YES
    return NO if has_no and _LONE_NO.search(text) else None


def _statement(text: str, *, lenient: bool) -> bool | None:
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0]
    if not _DECLARATIVE.match(sentence) or _YES_WORD.search(text):
        return None
    if _NEGATED.search(sentence):
        return NO
    return YES if lenient else None


def read_as_pope(answer: str) -> bool | None:
    """POPE: no if the first sentence has the word No, no or not; everything else is yes."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return NO if {"No", "no", "not"} & {*words} else YES


def read_as_vlmevalkit(answer: str) -> bool | None:
    """VLMEvalKit: yes or no if exactly one of the two is a word of the answer."""
    words = vqa_form(answer.lower()).split()
    return None if ("yes" in words) == ("no" in words) else "yes" in words


def read_as_mme(answer: str) -> bool | None:
    """MME: yes or no, one letter, or else found anywhere in the first four characters ("Not sure" is a no)."""
    text = answer.lower().strip().replace(".", "")
    if text in ("yes", "y"):
        return YES
    if text in ("no", "n"):
        return NO
    beginning = text[:4]
    if "yes" in beginning:
        return YES
    return NO if "no" in beginning else None


def read_exactly(answer: str) -> bool | None:
    """lmms-eval's POPE: the whole answer is yes or no, in any case; `Yes.` is neither."""
    return {"yes": YES, "no": NO}.get(answer.lower().strip())


def read_as_amber(answer: str) -> bool | None:
    """AMBER: the whole answer is `Yes` or `No`."""
    return {"Yes": YES, "No": NO}.get(answer)


def reference_yes_no(reference: str) -> bool | None:
    """What a reference answer says; None if it is not a yes or no."""
    return {"yes": YES, "true": YES, "1": YES, "y": YES, "no": NO, "false": NO, "0": NO, "n": NO}.get(
        plain(reference).lower().strip(". ")
    )

"""Texts made comparable, as the published scorers do it."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2032": "'"})
_MARKDOWN = re.compile(r"[*_`\"]+|^#+\s|(?<!\w)'|'(?!\w)")
_DELETED_OR_SPACED = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBER_WORDS)}}
_WITH_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspellings(word: str) -> Iterator[str]:
    """The word without one of its apostrophes."""
    for index, character in enumerate(word):
        if character == "'":
            yield word[:index] + word[index + 1 :]


_CONTRACTIONS = {wrong: right for right in _WITH_APOSTROPHES.split() for wrong in _misspellings(right)}


def plain(text: str) -> str:
    """The text in Unicode's compatibility form, with straight quotes, without markdown marks and outer white space."""
    straight = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    return _MARKDOWN.sub("", straight).strip()


def vqa_form(text: str) -> str:
    r"""The text as the scorer of VQA v2 compares it.

    Punctuation goes, number words become digits, articles are dropped and apostrophes restored.

    >>> vqa_form("The dog isnt\nbrown, there are two!")
    "dog isn't brown there are 2"
    """
    words = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    digits = [_DIGITS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in digits if word not in _ARTICLES)


def textvqa_form(text: str) -> str:
    """The text as the scorer of TextVQA compares it: commas and question marks go first, and `'s` becomes a word."""
    return vqa_form(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def squad_words(text: str) -> list[str]:
    """The words that SQuAD's F1 counts: lower case, without punctuation and articles."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return [word for word in bare.split() if word not in _ARTICLES]


def _without_punctuation(text: str) -> str:
    """Marks beside a space are deleted, others become a space; a number with a comma turns all into deletions."""
    out = text
    delete_all = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _DELETED_OR_SPACED:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_a_space or delete_all else " ")
    return _FULL_STOP.sub("", out)

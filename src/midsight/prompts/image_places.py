"""Image placeholders in the user's text, as datasets write them, become places of images in the prompt."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from midsight.errors import Option, SampleError, counted
from midsight.prompts.user_text import FilledText
from midsight.samples.placeholders import PLACEHOLDER, number_of

_ENDS = tuple(".?!…。？！")
"""How a sentence ends that an image may follow."""
_CLOSING = "\"'”’»)]*_ "
_POINTING = tuple(",:;，：；、(-–—")
"""What comes before an image that the words point to."""
_NEEDS_MORE = frozenset(
    [
        "a",
        "about",
        "an",
        "and",
        "are",
        "as",
        "at",
        "between",
        "by",
        "caption",
        "describe",
        "explain",
        "for",
        "from",
        "in",
        "into",
        "is",
        "like",
        "of",
        "on",
        "or",
        "see",
        "show",
        "shows",
        "summarise",
        "summarize",
        "than",
        "that",
        "the",
        "these",
        "this",
        "to",
        "versus",
        "vs",
        "with",
    ]
)
"""Last words of a sentence that is not whole without the image after it."""
_ABBREVIATIONS = ("cf.", "e.g.", "fig.", "figs.", "i.e.", "vs.")
_LABEL = re.compile(r"\W*\w{1,2}\W")
"""A line like `A.`, which names the image after it."""


@dataclass(frozen=True)
class UserTurn:
    """The user's turn of one prompt: texts and images in order."""

    parts: tuple[str | int, ...]
    """Texts without placeholders, and the index of each image."""
    question: tuple[int, int]
    """Start and stop of the sample's question in `text`, in characters."""

    @property
    def text(self) -> str:
        """The texts alone, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[int, ...]:
        """Index of each image, in the order of the prompt."""
        return tuple(part for part in self.parts if isinstance(part, int))

    @property
    def places(self) -> tuple[str | None, ...]:
        """The texts, and None for each image."""
        return tuple(part if isinstance(part, str) else None for part in self.parts)


def images_first(text: str, images: int = 1, question: tuple[int, int] | None = None) -> UserTurn:
    """The turn that shows all images before the text; the question is all of the text by default."""
    return UserTurn((*range(images), text), question or (0, len(text)))


def place_images(filled: FilledText, images: int, *, interleave: bool) -> UserTurn:
    """The turn of a text on `images` images, its placeholders replaced by images.

    Without placeholders images come first, in the order of the sample. Where the template cannot `interleave`, they
    come first in the order of the placeholders.
    Raises SampleError if the placeholders do not fit the images, or if the text needs them where the template cannot
    put them: a placeholder must not reach the model as words, nor leave a gap between them.
    """
    found = list(PLACEHOLDER.finditer(filled.text))
    if not found:
        return images_first(filled.text, images, filled.question)
    order = _order(found, images)
    pieces = _pieces(filled.text, found) if interleave else _around(filled, found)
    start, stop = (_moved(place, pieces) for place in filled.question)
    texts = [filled.text[start:stop] for start, stop in pieces]
    if not interleave:
        return UserTurn((*order, "".join(texts)), (start, stop))
    parts: list[str | int] = [texts[0]]
    for index, text in zip(order, texts[1:], strict=True):
        parts += [index, text]
    return UserTurn(tuple(part for part in parts if part != ""), (start, stop))


def _moved(place: int, pieces: Sequence[tuple[int, int]]) -> int:
    """Where a place in a text is after all but `pieces` are left out, in characters."""
    return sum(min(max(place - start, 0), stop - start) for start, stop in pieces)


def _order(found: Sequence[re.Match[str]], images: int) -> Sequence[int]:
    """Index of the image at each placeholder."""
    numbers = [number for one in found if (number := number_of(one)) is not None]
    if not numbers and len(found) == images:
        return range(images)
    for first in (1, 0):
        if len(numbers) == len(found) and {*numbers} == {*range(first, first + images)}:
            return [number - first for number in numbers]
    raise SampleError(
        f"The text has {counted(len(found), 'image placeholder')} ({_spelled(found)}) and the sample "
        f"{counted(images, 'image')}; give one for each image, numbered from 1 or 0 or not numbered, or none."
    )


def _spelled(found: Sequence[re.Match[str]]) -> str:
    spelled = ", ".join(dict.fromkeys(one.group() for one in found))
    return spelled if len(spelled) <= 60 else f"{spelled[:57]}..."


def _pieces(text: str, found: Sequence[re.Match[str]]) -> list[tuple[int, int]]:
    """Start and stop of each text between placeholders, in characters.

    White space beside placeholders is left out if they begin the text.
    """
    starts, stops = [0, *(one.end() for one in found)], [*(one.start() for one in found), len(text)]
    if any(text[start:stop].strip() for start, stop in zip(starts[:-1], stops[:-1], strict=True)):
        return list(zip(starts, stops, strict=True))
    return [*((start, start) for start in starts[:-1]), (starts[-1] + _indent(text[starts[-1] :]), len(text))]


def _around(filled: FilledText, found: Sequence[re.Match[str]]) -> list[tuple[int, int]]:
    """Start and stop of the text before and after placeholders that may as well stand before all of it.

    These are together, and begin the text or its question, or end them after a whole sentence; the white space between
    them and the question is left out. Raises SampleError for any others.
    """
    text, (start, stop) = filled.text, filled.question
    begin, end = found[0].start(), found[-1].end()
    before, after = text[:begin].rstrip(), end + _indent(text[end:])
    together = not any(text[one.end() : other.start()].strip() for one, other in itertools.pairwise(found))
    is_numbered = number_of(found[0]) is not None
    if together and not before:
        return [(0, 0), (after, len(text))]
    if together and start <= begin and not text[start:begin].strip() and not _goes_on(text[end:stop], is_numbered):
        return [(0, start), (min(after, max(end, stop)), len(text))]
    last = stop if begin < stop and end <= stop and not text[end:stop].strip() else len(text)
    if together and not text[end:last].strip() and _is_whole(text[:begin], is_numbered):
        return [(0, len(before)), (last, len(text))]
    raise SampleError(
        f"The text needs its image placeholders ({_spelled(found)}) where they are, and the chat template puts all "
        "images before the text; begin the question with them, or give ",
        Option("prompt_template"),
        " a file with a template that keeps their places.",
    )


def _goes_on(after: str, is_numbered: bool) -> bool:
    """Whether a text goes on with the sentence that its leading placeholders belong to.

    With a number, a placeholder is also the name of an image, as in `<image 1> shows what?`.
    """
    first = after.lstrip(" \t")[:1]
    return first in (*_ENDS, *_POINTING, ")") or (is_numbered and first.isalpha() and not first.isupper())


def _is_whole(before: str, is_numbered: bool) -> bool:
    """Whether the text before its last placeholders is whole without them."""
    words = before.rstrip()
    if words.endswith(_POINTING) or words.casefold().split()[-1] in _ABBREVIATIONS:
        return False
    if _LABEL.fullmatch(words.rpartition("\n")[2]):
        return False
    if words.rstrip(_CLOSING).endswith(_ENDS) or "\n" in before[len(words) :]:
        return True
    return not is_numbered and re.split(r"\W+", words)[-1].casefold() not in _NEEDS_MORE


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())

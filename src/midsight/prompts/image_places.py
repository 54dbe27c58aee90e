"""Image placeholders in the user's text, as datasets write them, become places of images in the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from midsight.errors import SampleError, counted
from midsight.prompts.user_text import FilledText
from midsight.samples.placeholders import PLACEHOLDER, number_of


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

    Without placeholders, and where the template cannot `interleave`, images come first, in the order of the sample.
    Raises SampleError if the placeholders do not fit the images: a placeholder must not reach the model as words.
    """
    found = list(PLACEHOLDER.finditer(filled.text))
    if not found:
        return images_first(filled.text, images, filled.question)
    order = _order(found, images)
    pieces = _pieces(filled.text, found, interleave=interleave)
    start, stop = (_moved(place, pieces) for place in filled.question)
    texts = [filled.text[start:stop] for start, stop in pieces]
    if not interleave:
        return images_first("".join(texts), images, (start, stop))
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
    spelled = ", ".join(dict.fromkeys(one.group() for one in found))
    if not numbers and len(found) == images:
        return range(images)
    for first in (1, 0):
        if len(numbers) == len(found) and {*numbers} == {*range(first, first + images)}:
            return [number - first for number in numbers]
    shown = spelled if len(spelled) <= 60 else f"{spelled[:57]}..."
    raise SampleError(
        f"The text has {counted(len(found), 'image placeholder')} ({shown}) and the sample {counted(images, 'image')}; "
        "give one for each image, numbered from 1 or 0 or not numbered, or none."
    )


def _pieces(text: str, found: Sequence[re.Match[str]], *, interleave: bool) -> list[tuple[int, int]]:
    """Start and stop of each text between placeholders, in characters.

    White space beside placeholders is left out if they begin the text, or if their places are not kept.
    """
    starts, stops = [0, *(one.end() for one in found)], [*(one.start() for one in found), len(text)]
    pieces = list(zip(starts, stops, strict=True))
    texts = [text[start:stop] for start, stop in pieces]
    if not "".join(texts[:-1]).strip():
        return [*((start, start) for start in starts[:-1]), (starts[-1] + _indent(texts[-1]), len(text))]
    if interleave:
        return pieces
    last = max(index for index, piece in enumerate(texts) if piece.strip())
    for index, (start, stop) in enumerate(pieces):
        before = "".join(text[a:b] for a, b in pieces[:index])
        start += _indent(texts[index]) if not before else before.endswith(" ") and texts[index].startswith(" ")
        if index >= last:
            stop = start + len(text[start:stop].rstrip())
        pieces[index] = (start, stop)
    return pieces


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())

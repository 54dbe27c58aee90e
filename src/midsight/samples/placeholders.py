"""Image placeholders that datasets write into questions."""

from __future__ import annotations

import re

PLACEHOLDER = re.compile(
    r"<\|?(?:image|img)[ _-]?(?P<number>\d+)\|?>|<\|?image\|?>|<image_?(?:here|placeholder)>", re.IGNORECASE
)
"""`<image>`, `<image 1>`, `<|image_1|>` and their like."""

_LEADING = re.compile(r"\s*(?:<image>|<\|image_(?P<number>\d+)\|>)")


def without_leading(question: str, images: int) -> str:
    """The question without the placeholders before its text, if they are one for each image, in order, and all.

    They say what a prompt does anyway: all images come first. Any other question is returned as it is.
    """
    end = found = 0
    while leading := _LEADING.match(question, end):
        found, end = found + 1, leading.end()
        if leading["number"] not in (None, str(found)):
            return question
    rest = question[end:].lstrip()
    return rest if found == images and not PLACEHOLDER.search(rest) else question

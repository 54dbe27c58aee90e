"""Image placeholders that datasets write into questions."""

from __future__ import annotations

import re

_OPENING = (
    r"<\|?(?:vision_start|image_start|img_start|im_start|start_of_image|begin_of_image|fake_token_around_image|img)\|?>"
)
_CLOSING = r"<\|?(?:vision_end|image_end|img_end|im_end|end_of_image|fake_token_around_image|/img|/image)\|?>"
_TAG = (
    r"<\|?\s?(?:image|img)[ _:#-]?(?P<number>\d+)\s?\|?>|<\|?\s?image\s?\|?>|<\|img\|>"
    r"|<\|?(?:image_?(?:here|placeholder|token|pad|soft_token)|img_context|im_patch)\|?>"
)
_BRACKETS = r"(?<!\w)\[(?:image|img)(?:[ _#-]{0,2}(?P<in_brackets>\d+))?\](?!\()"
_WITH_PATH = r"<img>[^<>\s]*</img>|\(<image>\./</image>\)|<image>[^<>\s]*</image>"
_AT_THE_EDGE = r"(?:^|(?=\S+[^\S\n]*$))(?:\{\{?image(?:[ _]?(?P<in_braces>\d+))?\}?\}|<img>)"
"""Also words of questions about code, so a placeholder only where they begin or end a line."""

PLACEHOLDER = re.compile(
    rf"{_WITH_PATH}|(?:{_OPENING})?(?:{_TAG})(?:{_CLOSING})?|<start_of_image>(?:<end_of_image>)?|{_BRACKETS}|{_AT_THE_EDGE}",
    re.IGNORECASE | re.MULTILINE,
)
"""Text for one image: `<image>`, `<image 1>`, `<|image_1|>`, `[IMG]`, `<img>a.png</img>`, a model's own tokens."""

_LOOKS_ALIKE = re.compile(
    r"<[^<>\n]{0,40}(?:image|img|vision|video|audio|media)[^<>\n]{0,200}>|!\[[^\]\n]*\]\([^)\n]+\)|\{image\w*\}|&lt;image",
    re.IGNORECASE,
)

_LEADING = re.compile(r"\s*(?:<image>(?![^<>\s]*</image>)|<\|image_(?P<number>\d+)\|>)")


def number_of(placeholder: re.Match[str]) -> int | None:
    """The number in a placeholder, such as 1 in `<image 1>`; None if it has none."""
    return int(placeholder[placeholder.lastgroup]) if placeholder.lastgroup else None


def looks_alike(question: str) -> str | None:
    """The first text that may stand for an image, and may as well be words, so that it stays in the prompt."""
    found = _LOOKS_ALIKE.search(PLACEHOLDER.sub("", question))
    return found.group() if found else None


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

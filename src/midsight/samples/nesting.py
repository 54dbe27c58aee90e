"""How lists and objects lie inside each other in JSON, and how many there are: found without decoding them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

MAX_NESTED = 500_000
"""Most lists, objects and texts of one row, the names in objects among them; a row with more of them fails."""
MAX_VALUES = 10_000_000
"""Most values of one row, with room for an image that is a list of its bytes; a row with more of them fails."""
MAX_DEPTH = 100
"""A row that holds a list or object as deep as this fails; it could not be written again."""
TOO_DEEP = f"it nests lists and objects more than {MAX_DEPTH} deep."

STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
"""A whole string, for a pattern with re.DOTALL."""

_WHOLE_STRING = re.compile(STRING, re.DOTALL)
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_PIECE_BYTES = 4096
_LARGEST_PIECE_BYTES = 1 << 20


def too_much_reason(data: bytes) -> str:
    """Why a row of JSON fails that would take seconds to read, however few bytes it has; empty if it may be read."""
    if len(data) > 2 * MAX_NESTED and _has_many(data):
        return too_many_reason()
    if len(data) > MAX_VALUES and data.count(b",") > MAX_VALUES:
        return f"it holds more than {MAX_VALUES:,} values; leave out the column that holds them."
    return ""


def too_many_reason() -> str:
    """Why a row with more than MAX_NESTED lists, objects and texts fails."""
    return f"it holds more than {MAX_NESTED:,} lists, objects and texts; leave out the column that holds them."


def too_deep_reason(data: bytes) -> str:
    """Why a row of JSON with lists and objects in each other fails; empty if it may be read."""
    few = count_brackets(data) < MAX_DEPTH
    return "" if few or all(depths.max() < MAX_DEPTH for _, depths in _depths(data, 0)) else TOO_DEEP


def count_brackets(data: bytes) -> int:
    """About how many lists and objects are in JSON, which take much longer to read than texts of the same length.

    Signs inside texts count, too.
    """
    return data.count(b"[") + data.count(b"{")


def _has_many(data: bytes) -> bool:
    if count_brackets(data) + data.count(b'"') // 2 <= MAX_NESTED:
        return False
    many = re.compile(rb'(?:[^"\[{]*+(?:%b|[\[{])){%d}+' % (STRING, MAX_NESTED + 1), re.DOTALL)
    return many.match(data) is not None


def skip_nested(text: bytes, position: int, depth: int) -> tuple[int, int]:
    """Where the last of the `depth` lists and objects ends that are open at the position, and 0.

    If the text ends before that: where to go on once there is more of it, and how many are open there. That is at the
    end, or at a string that has no end yet.
    """
    change = 0
    for begin, depths in _depths(text, position):
        closed = depths <= -depth
        end = int(closed.argmax())
        if closed[end]:
            return begin + end, 0
        position, change = begin + len(depths), int(depths[-1])
    return position, depth + change


def _depths(text: bytes, position: int) -> Iterator[tuple[int, np.ndarray]]:
    """For pieces of the text: where each begins, and for each byte how many brackets are open after it.

    Brackets before the position do not count. The position lies outside of a string, and what follows the beginning of
    a string without an end is left out.
    """
    depth, size = 0, _PIECE_BYTES
    while position < len(text):
        piece = text[position : position + size]
        signs = np.frombuffer(_ESCAPE.sub(b"  ", piece), np.uint8)
        quotes = signs == ord('"')
        in_string = np.logical_xor.accumulate(quotes)
        end = int(np.flatnonzero(quotes)[-1]) if in_string[-1] else len(piece)
        if not end:  # at a string that is longer than the piece
            string = _WHOLE_STRING.match(text, position)
            if string is None:
                return
            position = string.end()
            continue
        kinds = signs | 0x20  # the only difference between [ and {, and between ] and }
        steps = (kinds == ord("{")).astype(np.int8) - (kinds == ord("}")).astype(np.int8)
        steps[in_string] = 0
        depths = depth + np.cumsum(steps[:end], dtype=np.int32)
        yield position, depths
        position, depth = position + end, int(depths[-1])
        size = min(2 * size, _LARGEST_PIECE_BYTES)

"""Lists and objects that a table holds as text, written as JSON, Python or NumPy write them."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_LONGEST = 1_000_000
"""Longest text that is read as Python, in characters."""
_TEXT = re.compile(r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
_NUMPY = re.compile(rf"\[\s*{_TEXT.pattern}(?:\s+{_TEXT.pattern})+\s*\]", re.DOTALL)
"""NumPy prints no commas, and Python would join texts between which there is none."""


def written_value(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that a text spells, such as `['a', 'b']` or `['a' 'b']`; None for any other text."""
    text = text.strip()
    if text[:1] not in ("[", "{"):
        return None
    for read in (json.loads, _as_numpy, ast.literal_eval):
        if len(text) > _LONGEST and read is not json.loads:
            return None
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, list | dict) else None
    return None


def written_texts(text: str) -> list[str] | None:
    """The texts that a text like `['a', 'b']` lists; None for any other text, such as a list of numbers."""
    value = written_value(text) if text.lstrip()[:1] == "[" else None
    return value if isinstance(value, list) and value and all(isinstance(item, str) for item in value) else None


def _as_numpy(text: str) -> list[str]:
    if not _NUMPY.fullmatch(text):
        raise ValueError(text)
    return [ast.literal_eval(found) for found in _TEXT.findall(text)]

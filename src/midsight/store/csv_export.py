"""CSV of the columns without vectors: one line per row, and no cell that a spreadsheet would run as a formula."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a cell must not start with, because spreadsheets would run it; full-width signs count too."""
QUOTE = "'"
"""Put in front of such a text, and of a text that starts with it. Removing one gives every text back."""

_ROWS = 1024
_QUOTED = re.compile('[,"\r\n]|^$')
"""Cells in quotes: those that would not read back without, and the empty text, so that it differs from no value."""


def write_csv(batches: Iterable[tuple[pa.Table, np.ndarray]], count: int, columns: Sequence[str], made: Path) -> None:
    """Write `columns` of `batches` to the file `made`: `count` rows in the order of the export.

    The lines first go to a temporary file in stored order and are then copied in order. Raises OSError.
    """
    offsets, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    aside = made.with_name("lines")
    end = 0
    with aside.open("w+b") as lines, made.open("wb") as file:
        for batch, positions in batches:
            for start in range(0, batch.num_rows, _ROWS):
                for place, line in zip(
                    positions[start : start + _ROWS], _lines(batch.slice(start, _ROWS).select(columns)), strict=True
                ):
                    lines.write(line)
                    offsets[place], sizes[place] = end, len(line)
                    end += len(line)
        file.write(_line([neutral(column) for column in columns]))
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            lines.seek(offset)
            file.write(lines.read(size))
    aside.unlink()


def csv_lines(table: pa.Table) -> Iterable[bytes]:
    """The lines of a table as CSV, the header first, in the same form as an export."""
    yield _line([neutral(column) for column in table.column_names])
    for start in range(0, table.num_rows, _ROWS):
        yield from _lines(table.slice(start, _ROWS))


def neutral(text: str) -> str:
    """`text` as a cell that no spreadsheet runs.

    >>> neutral("=1+1"), neutral("one"), neutral("'tis")
    ("'=1+1", 'one', "''tis")
    """
    return QUOTE + text if text.startswith((*FORMULA_STARTS, QUOTE)) else text


def _lines(batch: pa.Table) -> Iterable[bytes]:
    cells = [_texts(column.combine_chunks()) for column in batch.columns]
    return map(_line, zip(*cells, strict=True))


def _line(cells: Iterable[str | None]) -> bytes:
    return f"{','.join(map(_cell, cells))}\r\n".encode()


def _cell(text: str | None) -> str:
    if text is None:
        return ""
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _texts(array: pa.Array) -> list[str | None]:
    if pa.types.is_list(array.type):
        return [_text(value, _json) for value in array.to_pylist()]
    if pa.types.is_boolean(array.type):
        return [_text(value, lambda value: str(value).lower()) for value in array.to_pylist()]
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return [_text(value, neutral) for value in array.to_pylist()]
    # Arrow prints the shortest digits that read back as the same number, float32 as float32.
    return array.cast(pa.string()).to_pylist()


def _text(value: Any, spell: Callable[[Any], str]) -> str | None:
    return None if value is None else spell(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

"""CSV and TSV as rows: quoted as RFC 4180 says and as pandas writes, with cells of any length.

Python's csv module refuses cells of more than 131,072 characters unless a setting of the whole process
is changed. An image in base64 is longer, so this module bounds the length of a row instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from midsight.buckets.path import Place
from midsight.errors import MidsightError, counted
from midsight.samples import rows as limits
from midsight.samples.locations import TextLocation
from midsight.samples.rows import (
    NOT_UTF_8,
    Row,
    quoted_names,
    read_line,
    skip_byte_order_mark,
    skip_rest,
    too_long_reason,
)
from midsight.samples.text_files import open_bytes

_INSIDE_QUOTES = re.compile(rb'[^"]*+(?:""[^"]*+)*+')
_QUOTED_CELL = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')
_BROKEN_QUOTES = "a quote is not closed, or text follows a closing quote"
_BARE_CARRIAGE_RETURN = "a carriage return is outside quotes"

LocatedText = tuple[TextLocation, bytes, str]
"""Where a row is, its bytes, and the problem that keeps it from being read, or an empty text."""


_SEPARATOR = re.compile(rb'"?sep=([,;\t|])"?\r?\n', re.IGNORECASE)
_LONGEST_SEPARATOR = 10
"""Bytes of the longest line that `_SEPARATOR` matches."""
OTHER_DELIMITERS = (",", ";", "\t", "|")
MAX_HEADER_BYTES = 1_000_000


def find_delimiter(path: Place, usual: str) -> str:
    """What separates the cells: as a first line `sep=;` says, which Excel writes, else `usual`.

    It is another separator if `usual` finds one column in the header and the other several.
    """
    with open_bytes(path) as file:
        skip_byte_order_mark(file, path)
        if declared := _SEPARATOR.fullmatch(file.readline(_LONGEST_SEPARATOR)):
            return declared[1].decode()
    if len(header(path, usual)) > 1:
        return usual
    return next((other for other in OTHER_DELIMITERS if _columns_with(path, other) > 1), usual)


def _columns_with(path: Place, delimiter: str) -> int:
    try:
        return len(header(path, delimiter))
    except MidsightError:
        return 0


def header(path: Place, delimiter: str) -> tuple[str, ...]:
    """The column names in the first row; a column without a name gets the one that pandas gives it.

    Raises MidsightError if the row is not a header.
    """
    for location, data, problem in _read_rows(path, delimiter, MAX_HEADER_BYTES):
        if problem:
            raise MidsightError(f"{path} has a bad header: {problem}")
        try:
            named = split_row(data, delimiter)
            columns = [name or f"Unnamed: {index}" for index, name in enumerate(named)]
        except UnicodeDecodeError as error:
            line = location.number
            raise MidsightError(f"{path} is not encoded as UTF-8 (line {line}); save it as UTF-8.") from error
        except ValueError as error:
            raise MidsightError(f"{path} has a bad header: it cannot be read as CSV: {error}.") from error
        if repeated := {name: None for name in columns if columns.count(name) > 1}:
            raise MidsightError(f"{path} has several columns named {quoted_names(repeated)}; rename or remove them.")
        return tuple(columns)
    raise MidsightError(f"{path} is empty; its first row must name the columns.")


def delimited_rows(path: Place, delimiter: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """All rows after the header that are not blank; a row that cannot be read has a problem and no cells."""
    rows = _read_rows(path, delimiter)
    next(rows)
    for start, data, problem in rows:
        location = TextLocation(path, start.offset_bytes, len(data), start.number, columns, delimiter)
        cells: dict[str, str] = {}
        if not problem:
            cells, problem = _cells(data, delimiter, columns)
        raw_text = data.decode("utf-8", "backslashreplace").rstrip("\r\n")
        yield Row(location.number, raw_text, cells, problem, location)


def _cells(data: bytes, delimiter: str, columns: tuple[str, ...]) -> tuple[dict[str, str], str]:
    """The cells of a row by column, or the problem with it."""
    try:
        cells = split_row(data, delimiter)
    except UnicodeDecodeError:
        return {}, NOT_UTF_8
    except ValueError as error:
        return {}, f"it cannot be read as CSV: {error}."
    if columns[1:] and all(name.startswith(" ") for name in columns[1:]):  # a space after each separator
        cells = [cell.lstrip(" ") for cell in cells]
    if len(cells) != len(columns):
        return {}, f"it has {counted(len(cells), 'cell')}, the header {len(columns)}."
    return dict(zip(columns, cells, strict=True)), ""


def split_row(data: bytes, delimiter: str) -> list[str]:
    """The cells of one row; raises ValueError for broken quotes and UnicodeDecodeError for other encodings."""
    text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    if '"' not in text:
        if "\r" in text:
            raise ValueError(_BARE_CARRIAGE_RETURN)
        return text.split(delimiter)
    cells: list[str] = []
    begin = 0
    while True:
        cell, end = _next_cell(text, begin, delimiter)
        cells.append(cell)
        if end >= len(text):
            return cells
        begin = end + 1


def _next_cell(text: str, begin: int, delimiter: str) -> tuple[str, int]:
    """The cell that starts at `begin`, and the position where it ends."""
    quoted = _QUOTED_CELL.match(text, begin)
    if quoted:
        if quoted.end() < len(text) and text[quoted.end()] != delimiter:
            raise ValueError(_BROKEN_QUOTES)
        return quoted[1].replace('""', '"'), quoted.end()
    end = text.find(delimiter, begin)
    end = len(text) if end < 0 else end
    cell = text[begin:end]
    if cell.startswith('"'):
        raise ValueError(_BROKEN_QUOTES)
    if "\r" in cell:
        raise ValueError(_BARE_CARRIAGE_RETURN)
    return cell, end


def _read_rows(path: Place, delimiter: str, most: int | None = None) -> Iterator[LocatedText]:
    with open_bytes(path) as file:
        yield from _rows(file, path, delimiter.encode(), most or limits.MAX_ROW_BYTES)


def _rows(file: BinaryIO, path: Place, delimiter: bytes, most: int) -> Iterator[LocatedText]:
    """All rows that are not blank, header included; those of more than `most` bytes have a problem.

    A row with line breaks in quotes is joined from its lines. If its quotes are broken, only its first
    line fails, and the next line starts a new row. So one lost quote does not cost the rest of the file.
    """
    offset, number = skip_byte_order_mark(file, path), 1
    if _SEPARATOR.fullmatch(declared := file.readline(_LONGEST_SEPARATOR)):
        offset, number = offset + len(declared), 2
    file.seek(offset)
    while line := read_line(file, most):
        begin, first = offset, number
        offset, number = offset + len(line), number + 1
        row, problem = line, too_long_reason(most) if len(line) > most else ""
        state = "done" if problem or b'"' not in line else _quote_state(line, False, delimiter)
        if state == "inside":
            row, state = _join_lines(file, line, delimiter, most)
            if state == "done":
                offset, number = begin + len(row), first + row.count(b"\n")
            else:
                file.seek(offset)
                row = line
        if state == "broken":
            problem = f"it cannot be read as CSV: {_BROKEN_QUOTES}."
        if row.strip(b"\r\n"):
            yield TextLocation(path, begin, len(row), first), row, problem
        offset += skip_rest(file, line)


def _join_lines(file: BinaryIO, line: bytes, delimiter: bytes, most: int) -> tuple[bytes, str]:
    """The row that starts with a line whose quotes are open, and the state of its quotes: `done` or `broken`."""
    lines, size, state = [line], len(line), "inside"
    while state == "inside":
        line = read_line(file, most)
        size += len(line)
        if not line or size > most:
            return b"", "broken"
        lines.append(line)
        if b'"' in line:
            state = _quote_state(line, True, delimiter)
    return b"".join(lines), state


def _quote_state(line: bytes, inside: bool, delimiter: bytes) -> str:
    """`inside` if the line ends in open quotes, `broken` if text follows a closing quote, else `done`.

    The argument `inside` says whether quotes are open where the line begins.
    """
    position = 0
    while True:
        if not inside and line[position : position + 1] == b'"':
            inside, position = True, position + 1
        if inside:
            closed = _INSIDE_QUOTES.match(line, position)
            position = closed.end() if closed else position
            if position == len(line):
                return "inside"
            position += 1
            if not line[position : position + 2].strip(b"\r\n"):
                return "done"
            if line[position : position + 1] != delimiter:
                return "broken"
            inside, position = False, position + 1
            continue
        position = line.find(delimiter, position) + 1
        if position == 0:
            return "done"

"""CSV and TSV as rows: quoted as RFC 4180 says and as pandas writes, cells of any length.

Python's csv module refuses cells of more than 131,072 characters, by a setting of the whole process,
and an image in base64 is longer. Here the bound is that of a record, and nothing global is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from midsight.errors import MidsightError
from midsight.samples import rows as limits
from midsight.samples.places import TextPlace
from midsight.samples.rows import NOT_UTF_8, Row, named, read_line, skip_mark, too_long

_INSIDE_QUOTES = re.compile(rb'[^"]*+(?:""[^"]*+)*+')
_QUOTED_CELL = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')
_QUOTES = "a quote is not closed, or text follows where it is closed"


def header(path: Path, delimiter: str) -> tuple[str, ...]:
    """The names in the first row; raises MidsightError where they are no header."""
    for place, data, problem in _read_records(path, delimiter):
        if problem:
            raise MidsightError(f"{path} has a header that is no CSV: {problem}")
        try:
            columns = split_record(data, delimiter)
        except UnicodeDecodeError as error:
            raise MidsightError(f"{path} is not encoded as UTF-8 (line {place.number}); save it as UTF-8.") from error
        except ValueError as error:
            raise MidsightError(f"{path} has a header that is no CSV: {error}.") from error
        if repeated := {name: None for name in columns if columns.count(name) > 1}:
            raise MidsightError(f"{path} has several columns named {named(repeated)}; rename or remove them.")
        return tuple(columns)
    raise MidsightError(f"{path} is empty; its first row must name the columns.")


def delimited_rows(path: Path, delimiter: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """A row for every record behind the header."""
    records = _read_records(path, delimiter)
    next(records)
    for place, data, problem in records:
        place = TextPlace(path, place.offset_bytes, len(data), place.number, columns, delimiter)
        raw = data.decode("utf-8", "backslashreplace").rstrip("\r\n")
        if problem:
            yield Row(place.number, raw, {}, problem, place)
            continue
        try:
            cells = split_record(data, delimiter)
        except UnicodeDecodeError:
            yield Row(place.number, raw, {}, NOT_UTF_8, place)
        except ValueError as error:
            yield Row(place.number, raw, {}, f"it is no CSV that can be read: {error}.", place)
        else:
            if len(cells) == len(columns):
                yield Row(place.number, raw, dict(zip(columns, cells, strict=True)), "", place)
            else:
                yield Row(place.number, raw, {}, f"it has {len(cells)} cells, the header {len(columns)}.", place)


def split_record(data: bytes, delimiter: str) -> list[str]:
    """The cells of one record; raises ValueError for broken quotes and for what is not UTF-8."""
    text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    if '"' not in text:
        if "\r" in text:
            raise ValueError("a carriage return stands outside of quotes")
        return text.split(delimiter)
    cells: list[str] = []
    at = 0
    while True:
        quoted = _QUOTED_CELL.match(text, at)
        if quoted:
            end = quoted.end()
            cells.append(quoted[1].replace('""', '"'))
            if end < len(text) and text[end] != delimiter:
                raise ValueError(_QUOTES)
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            cell = text[at:end]
            if cell.startswith('"') or "\r" in cell:
                raise ValueError(_QUOTES if cell.startswith('"') else "a carriage return stands outside of quotes")
            cells.append(cell)
        if end >= len(text):
            return cells
        at = end + 1


def _read_records(path: Path, delimiter: str) -> Iterator[tuple[TextPlace, bytes, str]]:
    with path.open("rb") as file:
        yield from _records(file, path, delimiter.encode())


def _records(file: BinaryIO, path: Path, delimiter: bytes) -> Iterator[tuple[TextPlace, bytes, str]]:
    """Each record that is not blank, and why it is none.

    A record with line ends in it is put together from lines. Where its quotes are broken only its
    first line fails, and the next one is a record again: a lost quote must not cost the rest of the file.
    """
    offset, number = skip_mark(file, path), 1
    while True:
        line, length = read_line(file)
        if not line:
            return
        begin, first = offset, number
        offset, number = offset + length, number + 1
        record, problem = line, too_long() if len(line) > limits.MAX_RECORD_BYTES else ""
        state = "done" if problem or b'"' not in line else _quotes(line, False, delimiter)
        if state == "inside":
            record, state = _until_closed(file, line, delimiter)
            if state == "done":
                offset, number = begin + len(record), first + record.count(b"\n")
            else:
                file.seek(offset)
                record = line
        if state == "broken":
            problem = f"it is no CSV that can be read: {_QUOTES}."
        if record.strip(b"\r\n"):
            yield TextPlace(path, begin, len(record), first), record, problem


def _until_closed(file: BinaryIO, line: bytes, delimiter: bytes) -> tuple[bytes, str]:
    """The record that begins with a line whose quotes are open."""
    pieces, size, state = [line], len(line), "inside"
    while state == "inside":
        line, length = read_line(file)
        size += length
        if not line or size > limits.MAX_RECORD_BYTES:
            return b"", "broken"
        pieces.append(line)
        if b'"' in line:
            state = _quotes(line, True, delimiter)
    return b"".join(pieces), state


def _quotes(line: bytes, inside: bool, delimiter: bytes) -> str:
    """`inside` where the line ends in open quotes, `broken` where text follows closing ones, else `done`."""
    at = 0
    while True:
        if not inside and line[at : at + 1] == b'"':
            inside, at = True, at + 1
        if inside:
            closed = _INSIDE_QUOTES.match(line, at)
            at = closed.end() if closed else at
            if at == len(line):
                return "inside"
            at += 1
            if not line[at : at + 2].strip(b"\r\n"):
                return "done"
            if line[at : at + 1] != delimiter:
                return "broken"
            inside, at = False, at + 1
            continue
        at = line.find(delimiter, at) + 1
        if at == 0:
            return "done"

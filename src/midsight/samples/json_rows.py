"""JSON objects as rows: one per line (JSONL), or the elements of one array."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from midsight.errors import MidsightError, SampleError
from midsight.samples import rows as limits
from midsight.samples.locations import TextLocation
from midsight.samples.rows import (
    NOT_UTF_8,
    Row,
    read_lines,
    skip_byte_order_mark,
    too_long_reason,
    validate_nesting,
    validate_storable,
)

_CHUNK_BYTES = 1 << 20
_decode = json.JSONDecoder().decode
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""Whole strings, brackets and commas; a lone quote is a string that continues in the next chunk."""


def jsonl_columns(path: Path, limit: int | None) -> tuple[str, ...]:
    """Every name that occurs in the first `limit` rows; raises MidsightError if there is none."""
    with path.open("rb") as file:
        lines = ((number, line) for number, _, line in read_lines(file, path) if line.strip())
        cells = ((number, *_cells(line)) for number, line in lines)
        return _columns(cells, path, limit, "write one JSON object per line")


def jsonl_rows(path: Path) -> Iterator[Row]:
    """All lines that are not blank; a line that cannot be read has a problem and no cells."""
    with path.open("rb") as file:
        for number, offset, line in read_lines(file, path):
            if line.strip():
                yield _row(line, TextLocation(path, offset, len(line), number))


def array_columns(path: Path, limit: int | None) -> tuple[str, ...]:
    """Every name that occurs in the first `limit` elements; raises MidsightError if there is none."""
    with path.open("rb") as file:
        elements = enumerate(_elements(file, path), start=1)
        cells = (
            (number, {}, problem) if problem else (number, *_cells(data)) for number, (_, data, problem) in elements
        )
        return _columns(cells, path, limit, "write one array of JSON objects")


def array_rows(path: Path) -> Iterator[Row]:
    """All elements of the array in a file, which is read in chunks.

    An element that cannot be read has a problem and no cells. Raises MidsightError if the file does not begin
    as an array.
    """
    with path.open("rb") as file:
        for number, (offset, data, problem) in enumerate(_elements(file, path), start=1):
            location = TextLocation(path, offset, len(data), number)
            yield Row(number, _text_of(data), {}, problem, location) if problem else _row(data, location)


def json_cells(data: bytes) -> Any:
    """The JSON value in a row's bytes; raises ValueError if they are not JSON in UTF-8."""
    return _decode(data.decode("utf-8"))


def _columns(
    rows: Iterable[tuple[int, Mapping[str, Any], str]], path: Path, limit: int | None, remedy: str
) -> tuple[str, ...]:
    columns: dict[str, None] = {}
    first: tuple[int, str] | None = None
    for number, cells, problem in itertools.islice(rows, limit):
        first = first or (number, problem)
        if not cells.keys() <= columns.keys():
            columns.update(dict.fromkeys(cells))
    if not columns:
        why = f"{_unit(path)} {first[0]}: {first[1] or 'it names no values.'}" if first else "it is empty."
        raise MidsightError(f"{path} has no row with values, {remedy}; {why}")
    return tuple(columns)


def _unit(path: Path) -> str:
    return "element" if path.suffix.lower() == ".json" else "line"


def _text_of(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").rstrip("\r\n")


def _row(data: bytes, location: TextLocation) -> Row:
    cells, problem = _cells(data)
    raw_text = _text_of(data if len(data) <= limits.MAX_ROW_BYTES else data[:100])
    return Row(location.number, raw_text, cells, problem, location)


def _cells(data: bytes) -> tuple[Mapping[str, Any], str]:
    """The values of a row, or the problem with it."""
    if len(data) > limits.MAX_ROW_BYTES:
        return {}, too_long_reason()
    try:
        cells = json_cells(data)
        if not isinstance(cells, dict):
            return {}, "it is not a JSON object."
        if data.count(b"[") + data.count(b"{") > 100:
            validate_nesting(cells)
        if b"\\u" in data:
            validate_storable(cells)
    except SampleError as error:
        return {}, str(error)
    except UnicodeDecodeError:
        return {}, NOT_UTF_8
    except (ValueError, RecursionError) as error:
        return {}, f"it cannot be read as JSON: {error}."
    return cells, ""


def _elements(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes, str]]:
    """Offset, bytes and problem of each element of the array; the problem is empty if the element may be read.

    Only strings, brackets and commas separate elements, so a broken element does not affect the others.
    """
    offset = skip_byte_order_mark(file, path)  # of text[0]
    text = file.read(_CHUNK_BYTES)
    if not text.lstrip().startswith(b"["):
        raise MidsightError(f"{path} does not begin as a JSON array; write [{{...}}, ...], or JSONL as .jsonl.")
    begin = position = text.index(b"[") + 1
    opened = [b"["]
    while opened:
        token = _TOKEN.search(text, position)
        if token is None or token[0] == b'"':
            position = token.start() if token else len(text)
            offset, text, position, begin = offset + begin, text[begin:], position - begin, 0
            more = b"" if len(text) > limits.MAX_ROW_BYTES else file.read(max(_CHUNK_BYTES, len(text)))
            if not more:
                yield from _unfinished(text, offset, in_element=len(opened) > 1)
                return
            text += more
            continue
        position = token.end()
        if token[0] in (b"[", b"{"):
            opened.append(token[0])
            continue
        if token[0] in (b"]", b"}"):
            _close(opened, b"[" if token[0] == b"]" else b"{")
        if not opened or (len(opened) == 1 and token[0] == b","):
            element = text[begin : token.start()]
            if element.strip():
                yield offset + begin + len(element) - len(element.lstrip()), element.strip(), ""
            begin = position
    rest = text[begin:].strip() or next((more for more in iter(lambda: file.read(_CHUNK_BYTES).strip(), b"")), b"")
    if rest:
        yield offset + begin, rest[:100], "there is text after the array."


def _unfinished(text: bytes, offset: int, *, in_element: bool) -> Iterator[tuple[int, bytes, str]]:
    """The last elements of an array without an end: the last element is too long, or the file ends first."""
    if len(text) > limits.MAX_ROW_BYTES:
        yield offset, text[:100], f"{too_long_reason()[:-1]}; the rest of the file is not read."
        return
    if not in_element and text.strip():
        yield offset + len(text) - len(text.lstrip()), text.strip(), ""
        text = b""
    yield offset, text.strip(), "the file ends before the array does."


def _close(opened: list[bytes], bracket: bytes) -> None:
    """Closes the last open bracket of this kind, and all brackets opened after it.

    In an element, a closing bracket without an opening one is ignored.
    """
    if bracket in (opened[1:] or opened):
        while opened.pop() != bracket:
            pass

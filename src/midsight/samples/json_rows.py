"""JSON objects as rows: one per line (JSONL), the elements of one array, or the members of one object."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal, cast

from midsight.buckets.path import Place
from midsight.errors import MidsightError, SampleError
from midsight.samples import nesting
from midsight.samples import rows as limits
from midsight.samples.locations import TextLocation
from midsight.samples.nesting import STRING, count_brackets, too_deep_reason, too_many_reason, too_much_reason
from midsight.samples.rows import NOT_UTF_8, Row, read_lines, too_long_reason, validate_storable
from midsight.samples.text_files import open_bytes

_CHUNK_BYTES = 1 << 20
_decode = json.JSONDecoder().decode
_FLAT = rb'[^"\[\]{}]*+(?:%b[^"\[\]{}]*+)*+' % STRING
TOKEN = re.compile(rb'%b|["\[\]{},]' % STRING, re.DOTALL)
"""Whole strings, brackets and commas; a lone quote is a string that continues in the next chunk."""
PASSED_OVER = re.compile(rb"%b(?:(?:\{%b\}|\[%b\])%b)*+" % ((_FLAT,) * 4), re.DOTALL)
"""Everything up to a bracket or a lone quote, with whole lists and objects that hold no others."""


@dataclass(frozen=True)
class JsonShape:
    """How a JSON file holds its rows."""

    kind: Literal["lines", "array", "members", "object"]
    """One object a line, the elements of an array, the members of an object, whose names are ids, or one object."""
    offset: int = 0
    """Where the array or object begins, in bytes."""
    inside: bool = False
    """Whether the array is the value of a member of an object."""
    may_be_another: str = ""
    """Name of the list or object, if another list may be the table and the file was not read so far."""

    @property
    def unit(self) -> Literal["line", "element"]:
        """What is counted."""
        return "line" if self.kind == "lines" else "element"


LINES = JsonShape("lines")


def json_columns(
    path: Place, shape: JsonShape, limit: int | None, *, max_bytes: int | None = None, may_be_empty: bool = False
) -> tuple[str, ...]:
    """Every name that occurs in the first `limit` rows; raises MidsightError if there is none, unless it may be.

    With `max_bytes`, the row at that place in the file is the last one that is read; an earlier one is, once the rows
    hold as many lists and objects as one row may.
    """
    columns: dict[str, None] = {}
    first: Row | None = None
    nested = 0
    for row in itertools.islice(json_rows(path, shape), limit):
        first = first or row
        if not row.cells.keys() <= columns.keys():
            columns.update(dict.fromkeys(row.cells))
        if max_bytes is None:
            continue
        location = cast("TextLocation", row.location)
        nested += count_brackets(row.raw_text.encode())
        if location.offset_bytes + location.length_bytes - shape.offset > max_bytes or nested > nesting.MAX_NESTED:
            break
    if not columns and not may_be_empty:
        remedy = "write one JSON object per line" if shape.kind == "lines" else "write one array of JSON objects"
        why = f"{shape.unit} {first.number}: {first.problem or 'it names no values.'}" if first else "it is empty."
        raise MidsightError(f"{path} has no row with values, {remedy}; {why}")
    return tuple(columns)


def json_rows(path: Place, shape: JsonShape, key_column: str = "") -> Iterator[Row]:
    """All rows of a file that are not blank; one that cannot be read has a problem and no cells.

    The name of a member becomes the cell of `key_column`.
    """
    with open_bytes(path) as file:
        if shape.kind == "lines":
            for number, offset, line in read_lines(file, path):
                if line.strip():
                    yield _row(line, TextLocation(path, offset, len(line), number))
            return
        if shape.kind == "object":
            file.seek(shape.offset)
            data = file.read(limits.MAX_ROW_BYTES + 1).rstrip()
            yield _row(data, TextLocation(path, shape.offset, len(data), 1))
            return
        elements = _elements(file, shape.offset, alone=not shape.inside)
        for number, (offset, data, problem) in enumerate(elements, start=1):
            name, value = _member(data) if shape.kind == "members" and not problem else ("", data)
            location = TextLocation(path, offset + len(data) - len(value), len(value), number)
            row = Row(number, text_of(data), {}, problem, location) if problem else _row(value, location)
            yield replace(row, cells={key_column: name, **row.cells}) if key_column and row.cells else row


def _member(data: bytes) -> tuple[str, bytes]:
    """Name and value of a member of an object; the value is empty if it is damaged."""
    name = TOKEN.match(data)
    value = data[name.end() :].lstrip() if name else b""
    if name is None or not name[0].startswith(b'"') or not value.startswith(b":"):
        return "", b""
    try:
        return json.loads(name[0]), value[1:].lstrip()
    except ValueError:
        return "", b""


def json_cells(data: bytes) -> Any:
    """The JSON value in a row's bytes; raises ValueError if they are not JSON in UTF-8."""
    return _decode(data.decode("utf-8"))


def text_of(data: bytes) -> str:
    """Bytes of JSON as text for a message, whatever they are."""
    return data.decode("utf-8", "backslashreplace").rstrip("\r\n")


def _row(data: bytes, location: TextLocation) -> Row:
    cells, problem = read_cells(data)
    raw_text = text_of(data if len(data) <= limits.MAX_ROW_BYTES else data[:100])
    return Row(location.number, raw_text, cells, problem, location)


def read_cells(data: bytes) -> tuple[Mapping[str, Any], str]:
    """The values of a row, or the problem with it: a sentence about "it"."""
    if len(data) > limits.MAX_ROW_BYTES:
        return {}, too_long_reason()
    if problem := too_much_reason(data):
        return {}, problem
    try:
        cells = json_cells(data)
        if not isinstance(cells, dict):
            return {}, "it is not a JSON object."
        if problem := too_deep_reason(data):
            return {}, problem
        if b"\\u" in data:
            validate_storable(cells)
    except SampleError as error:
        return {}, str(error)
    except UnicodeDecodeError:
        return {}, NOT_UTF_8
    except (ValueError, RecursionError) as error:
        return {}, f"it cannot be read as JSON: {error}."
    return cells, ""


def _elements(file: BinaryIO, offset: int, *, alone: bool) -> Iterator[tuple[int, bytes, str]]:
    """Offset, bytes and problem of each element of the array, or member of the object, that begins at the offset.

    The problem is empty if the element may be read. Only strings, brackets and commas separate elements, so a broken
    element does not affect the others. `alone` says whether nothing may follow the array.
    """
    file.seek(offset)  # of text[0]
    text = file.read(_CHUNK_BYTES)
    begin = position = 1
    opened = [text[:1]]
    brackets = 0  # in the element
    while opened:
        if len(opened) > 1:  # in an element, where only brackets count
            brackets += 1
            if brackets > 2 * nesting.MAX_NESTED:
                yield offset + begin, text[begin:][:100], _with_rest_unread(too_many_reason())
                return
            position = cast("re.Match[bytes]", PASSED_OVER.match(text, position)).end()
        token = TOKEN.search(text, position)
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
            begin, brackets = position, 0
    if not alone:
        return
    rest = text[begin:].strip() or next((more for more in iter(lambda: file.read(_CHUNK_BYTES).strip(), b"")), b"")
    if rest:
        yield offset + begin, rest[:100], "there is text after the array."


def _unfinished(text: bytes, offset: int, *, in_element: bool) -> Iterator[tuple[int, bytes, str]]:
    """The last elements of an array without an end: the last element is too long, or the file ends first."""
    if len(text) > limits.MAX_ROW_BYTES:
        yield offset, text[:100], _with_rest_unread(too_long_reason())
        return
    if not in_element and text.strip():
        yield offset + len(text) - len(text.lstrip()), text.strip(), ""
        text = b""
    yield offset, text.strip(), "the file ends before the array does."


def _with_rest_unread(reason: str) -> str:
    return f"{reason[:-1]}; the rest of the file is not read."


def _close(opened: list[bytes], bracket: bytes) -> None:
    """Closes the last open bracket of this kind, and all brackets opened after it.

    In an element, a closing bracket without an opening one is ignored.
    """
    if bracket in (opened[1:] or opened):
        while opened.pop() != bracket:
            pass

"""JSON objects as rows: one on each line (JSONL), or the elements of one array."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from midsight.errors import MidsightError, SampleError
from midsight.samples import rows as limits
from midsight.samples.places import TextPlace
from midsight.samples.rows import NOT_UTF_8, Row, check_nesting, check_storable, read_lines, skip_mark, too_long

_CHUNK_BYTES = 1 << 20
_decode = json.JSONDecoder().decode
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""What tells elements apart: whole strings, brackets, commas; a lone quote is a string that is not closed yet."""


def jsonl_columns(path: Path, limit: int | None) -> tuple[str, ...]:
    """Every name that occurs in the first `limit` rows; raises MidsightError where there is none."""
    with path.open("rb") as file:
        records = ((number, line) for number, _, line in read_lines(file, path) if line.strip())
        cells = ((number, *_cells(line)) for number, line in records)
        return _columns(cells, path, limit, "write one JSON object per line")


def jsonl_rows(path: Path) -> Iterator[Row]:
    """A row for every line that is not blank."""
    with path.open("rb") as file:
        for number, offset, line in read_lines(file, path):
            if line.strip():
                yield _row(line, TextPlace(path, offset, len(line), number))


def array_columns(path: Path, limit: int | None) -> tuple[str, ...]:
    """Every name that occurs in the first `limit` elements; raises MidsightError where there is none."""
    with path.open("rb") as file:
        elements = enumerate(_elements(file, path), start=1)
        cells = (
            (number, {}, problem) if problem else (number, *_cells(data)) for number, (_, data, problem) in elements
        )
        return _columns(cells, path, limit, "write one array of JSON objects")


def array_rows(path: Path) -> Iterator[Row]:
    """A row for every element of the array that the file holds; it is never in memory as a whole.

    Raises MidsightError for what does not begin as an array.
    """
    with path.open("rb") as file:
        for number, (offset, data, problem) in enumerate(_elements(file, path), start=1):
            place = TextPlace(path, offset, len(data), number)
            yield Row(number, _raw(data), {}, problem, place) if problem else _row(data, place)


def json_cells(data: bytes) -> Any:
    """The object in a record's bytes, as when the row was read."""
    return _decode(data.decode("utf-8"))


def _columns(
    records: Iterable[tuple[int, Mapping[str, Any], str]], path: Path, limit: int | None, mend: str
) -> tuple[str, ...]:
    columns: dict[str, None] = {}
    first: tuple[int, str] | None = None
    for number, cells, problem in itertools.islice(records, limit):
        first = first or (number, problem)
        if not cells.keys() <= columns.keys():
            columns.update(dict.fromkeys(cells))
    if not columns:
        why = f"{_unit(path)} {first[0]}: {first[1] or 'it names no values.'}" if first else "it is empty."
        raise MidsightError(f"{path} has no row with values, {mend}; {why}")
    return tuple(columns)


def _unit(path: Path) -> str:
    return "element" if path.suffix.lower() == ".json" else "line"


def _raw(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").rstrip("\r\n")


def _row(data: bytes, place: TextPlace) -> Row:
    cells, problem = _cells(data)
    return Row(place.number, _raw(data if len(data) <= limits.MAX_RECORD_BYTES else data[:100]), cells, problem, place)


def _cells(data: bytes) -> tuple[Mapping[str, Any], str]:
    """The values of a record, and why it has none."""
    if len(data) > limits.MAX_RECORD_BYTES:
        return {}, too_long()
    try:
        cells = json_cells(data)
        if not isinstance(cells, dict):
            return {}, "it is no JSON object."
        if data.count(b"[") + data.count(b"{") > 100:
            check_nesting(cells)
        if b"\\u" in data:
            check_storable(cells)
    except SampleError as error:
        return {}, str(error)
    except UnicodeDecodeError:
        return {}, NOT_UTF_8
    except (ValueError, RecursionError) as error:
        return {}, f"it is no JSON that can be read: {error}."
    return cells, ""


def _elements(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes, str]]:
    """Offset and bytes of each element of the array, and a problem for what is none.

    Only strings, brackets and commas are looked at, so that a broken element costs no other one.
    """
    offset = skip_mark(file, path)  # of text[0]
    text = file.read(_CHUNK_BYTES)
    if not text.lstrip().startswith(b"["):
        raise MidsightError(f"{path} does not begin as a JSON array; write [{{...}}, ...], or JSONL as .jsonl.")
    begin = at = text.index(b"[") + 1
    opened = [b"["]
    while opened:
        token = _TOKEN.search(text, at)
        if token is None or token[0] == b'"':
            at = token.start() if token else len(text)
            offset, text, at, begin = offset + begin, text[begin:], at - begin, 0
            more = b"" if len(text) > limits.MAX_RECORD_BYTES else file.read(max(_CHUNK_BYTES, len(text)))
            if not more:
                if len(text) > limits.MAX_RECORD_BYTES:
                    yield offset, text[:100], f"{too_long()[:-1]}; what comes after is not read."
                    return
                if len(opened) == 1 and text.strip():
                    yield offset + len(text) - len(text.lstrip()), text.strip(), ""
                    text = b""
                yield offset, text.strip(), "the file ends before the array does."
                return
            text += more
            continue
        at = token.end()
        if token[0] in (b"[", b"{"):
            opened.append(token[0])
            continue
        if token[0] in (b"]", b"}"):
            _close(opened, b"[" if token[0] == b"]" else b"{")
        if not opened or (len(opened) == 1 and token[0] == b","):
            element = text[begin : token.start()]
            if element.strip():
                yield offset + begin + len(element) - len(element.lstrip()), element.strip(), ""
            begin = at
    rest = text[begin:].strip() or next((more for more in iter(lambda: file.read(_CHUNK_BYTES).strip(), b"")), b"")
    if rest:
        yield offset + begin, rest[:100], "there is text behind the array."


def _close(opened: list[bytes], bracket: bytes) -> None:
    """Takes the last such bracket and those inside of it away: one that is left open ends with what is around it.

    In an element one that was not opened there counts for nothing.
    """
    if bracket in (opened[1:] or opened):
        while opened.pop() != bracket:
            pass

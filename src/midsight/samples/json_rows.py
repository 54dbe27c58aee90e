"""JSON objects as rows: one per line (JSONL), the elements of one array, or the members of one object."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from midsight.errors import MidsightError, Option, SampleError
from midsight.samples import rows as limits
from midsight.samples.folders import IMAGE_SUFFIXES
from midsight.samples.locations import TextLocation
from midsight.samples.rows import (
    NOT_UTF_8,
    Row,
    quoted_names,
    read_lines,
    skip_byte_order_mark,
    too_long_reason,
    validate_nesting,
    validate_storable,
)
from midsight.samples.text_files import open_bytes, table_suffix

NAMES_IN_ROWS = frozenset(("image", "images", "question", "query", "text", "conversations", "messages"))
"""An object with one of these names is a row, or a table written column by column, but not a dict of rows."""
NAMES_OF_ROWS = frozenset(("data", "questions", "rows", "samples", "examples", "instances"))
"""A list of objects with one of these names is the table, whatever else the object holds."""
NAMES_OF_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testmini", "eval"))
"""Names of lists, and of files, that are splits of a dataset and not parts of one table."""
_CHUNK_BYTES = 1 << 20
BYTES_LOOKED_AT = 4 << 20
"""How far an object is read for a list that is surely the table, if its beginning has to decide."""
_LINES_LOOKED_AT = 10
_MEMBERS_LOOKED_AT = 100
_decode = json.JSONDecoder().decode
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
"""Whole strings, brackets and commas; a lone quote is a string that continues in the next chunk."""


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
    """Name of the list, if another list of the file may be the table and the file was not read so far."""

    @property
    def unit(self) -> Literal["line", "element"]:
        """What is counted."""
        return "line" if self.kind == "lines" else "element"


LINES = JsonShape("lines")


@dataclass
class _Members:
    """The members of an object, as far as they decide what it is."""

    begin: int
    """Where the object begins, in bytes."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Name of each of the first members -> `{` for an object, `[` for a list, empty for anything else."""
    lists: dict[str, int] = field(default_factory=dict)
    """Name of each list of objects, up to the first that is surely the table -> where it begins, in bytes."""
    inner: dict[str, _Members] = field(default_factory=dict)
    """Name of each member that is an object -> its members."""
    followed: bool = False
    """Whether another value follows."""
    cut_off: bool = False
    """Whether the object was not read to where its lists are known."""

    @property
    def is_row(self) -> bool:
        """Whether the object is a row, or a table written column by column."""
        return bool(NAMES_IN_ROWS & (self.kinds.keys() - self.lists.keys())) or bool(
            {"conversations", "messages"} & self.lists.keys()
        )


def json_shape(path: Path, split: str | None = None, *, beginning: bool = False) -> JsonShape:
    """How the file holds its rows, whatever its name ends in; `split` names one of several lists in an object.

    With `beginning`, a list at the beginning of an object is taken as its rows although another list may follow.
    Raises MidsightError if it holds no rows.
    """
    with open_bytes(path) as file:
        start = skip_byte_order_mark(file, path)
        text = file.read(_CHUNK_BYTES)
    begin = text.lstrip()
    offset = start + len(text) - len(begin)
    is_json = table_suffix(path) == ".json"
    if begin.startswith(b"[") and (is_json or begin[1:].lstrip()[:1] in (b"{", b"]", b"")):
        return JsonShape("array", offset)
    lines = [line for line in begin.split(b"\n", _LINES_LOOKED_AT)[:_LINES_LOOKED_AT] if line.strip()]
    if not begin.startswith(b"{"):
        if is_json and lines:
            raise MidsightError(f"{path} is not JSON with rows; write [{{...}}, ...], or one object per line.")
        return LINES
    are_rows = [not read_cells(line)[1] for line in lines]
    if len(lines) > 1 and any(are_rows[: 1 if is_json else None]):
        return LINES
    members = _read_members(path, offset, split, beginning=beginning)
    shape = LINES if members.followed else _shape_of_object(path, offset, members, split)
    is_alone = members.is_row and not members.followed and len(lines) > 1 and not any(are_rows)
    return JsonShape("object", offset) if shape is LINES and is_alone else shape


def _shape_of_object(path: Path, offset: int, members: _Members, split: str | None) -> JsonShape:
    """The shape of a file that is one object: a row, a table within, or rows by id."""
    if _holds_columns(members):
        raise MidsightError(f"{path} holds columns, not rows; with pandas, write to_json(..., orient='records').")
    if members.is_row:
        return LINES
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in members.lists):
        raise MidsightError(
            f"{path} holds a list of rows for each image; write one row for each, with its image in it."
        )
    if lists := members.lists or _inner_lists(members):
        certain = [name for name in lists if split is None and name.rpartition(".")[2] in NAMES_OF_ROWS]
        if members.cut_off and not certain:
            name, begin = next(reversed(lists.items()))
            return JsonShape("array", begin, inside=True, may_be_another=name)
        chosen = certain[0] if len(certain) == 1 else choose_split(path, list(lists), split)
        return JsonShape("array", lists[chosen], inside=True)
    for name, inner in members.inner.items():
        if name in NAMES_OF_ROWS and not inner.is_row and {*inner.kinds.values()} == {"{"}:
            return JsonShape("members", inner.begin, inside=True)
    return JsonShape("members", offset) if {*members.kinds.values()} == {"{"} else LINES


def _holds_columns(members: _Members) -> bool:
    """Whether an object is a table written column by column, as pandas does by default and with orient='split'."""
    named = {name: kind for name, kind in members.kinds.items() if name in NAMES_IN_ROWS and name not in members.lists}
    if {"conversations", "messages"} & members.lists.keys():
        return False
    by_column = any(named[name] for name in named.keys() & {"image", "question"}) and len({*named.values()}) == 1
    return by_column or ({"columns", "data"} <= members.kinds.keys() and not members.lists)


def _inner_lists(members: _Members) -> dict[str, int]:
    """Name of each list of objects inside an object that is not a row -> where it begins, in bytes.

    A list inside a row by id is not one of these, so that one of its two names has to be that of a table or a split.
    """
    known = NAMES_OF_ROWS | NAMES_OF_SPLITS
    found = {
        f"{outer}.{name}": begin
        for outer, inner in members.inner.items()
        for name, begin in inner.lists.items()
        if not inner.is_row and known & {outer, name}
    }
    outers = [name.partition(".")[0] for name in found]
    if len({*outers}) == len(found) > 1:  # a list for each split
        return dict(zip(outers, found.values(), strict=True))
    return found


def choose_split(path: Path, splits: Sequence[str], split: str | None) -> str:
    """The split with this name, or the only one; raises MidsightError."""
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        problem = "several splits" if split is None else f"no split {split!r}"
        shown = quoted_names(splits[:20])
        raise MidsightError(f"{path} has {problem}; choose one of {shown} with ", Option("split"), ".")
    return split


def _read_members(path: Path, offset: int, split: str | None, *, beginning: bool) -> _Members:
    """The members of the object at the offset and of objects in it, as far as they decide its shape.

    The list that is the table ends the search: the one named `split`, else one whose name is in NAMES_OF_ROWS.
    """
    ends = NAMES_OF_ROWS if split is None else {split}
    members = _Members(offset)
    opened: list[bytes] = []
    objects, names, previous, opened_at = [members], ["", ""], b"", 0
    with open_bytes(path) as file:
        for token, at in _tokens(file, offset):
            depth = len(opened)
            is_enough = beginning and split is None and at - offset > BYTES_LOOKED_AT
            members.cut_off = is_enough and bool(members.lists or objects[-1].lists)
            members.followed = depth == 0 and previous != b""
            if members.cut_off or members.followed:
                return members
            inside = depth - 1 if depth in (1, 2) and opened[-1] == b"{" else None
            if inside is not None and previous in (b"{", b",") and token.startswith(b'"'):
                if len(objects[inside].kinds) == _MEMBERS_LOOKED_AT:
                    return members
                names[inside] = _text_of(token[1:-1])
                objects[inside].kinds[names[inside]] = ""
            elif inside is not None and token in (b"{", b"["):
                objects[inside].kinds[names[inside]] = token.decode()
                if inside == 0 and token == b"{":
                    objects[1:] = [_Members(at)]
                    members.inner[names[0]] = objects[1]
            elif depth in (2, 3) and token == b"{" and previous == b"[" and opened[-2] == b"{" and opened[0] == b"{":
                name = names[depth - 2]
                objects[depth - 2].lists[name] = opened_at
                if name in ends and (depth == 2 or (names[0] in ends and not objects[1].is_row)):
                    return members
            if token in (b"{", b"["):
                opened.append(token)
                opened_at = at
            elif token in (b"}", b"]") and opened:
                opened.pop()
            previous = token
    return members


def _tokens(file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int]]:
    """Whole strings, brackets and commas from the offset on, each with where it is in the file, in bytes."""
    file.seek(offset)
    text, more = b"", file.read(_CHUNK_BYTES)
    while more:
        text += more
        position = 0
        for token in _TOKEN.finditer(text):
            position = token.start()
            if token[0] == b'"':
                break
            yield token[0], offset + position
            position = token.end()
        else:
            position = len(text)
        offset, text = offset + position, text[position:]
        more = b"" if len(text) > limits.MAX_ROW_BYTES else file.read(max(_CHUNK_BYTES, len(text)))


def json_columns(path: Path, shape: JsonShape, limit: int | None, *, may_be_empty: bool = False) -> tuple[str, ...]:
    """Every name that occurs in the first `limit` rows; raises MidsightError if there is none, unless it may be."""
    columns: dict[str, None] = {}
    first: Row | None = None
    for row in itertools.islice(json_rows(path, shape), limit):
        first = first or row
        if not row.cells.keys() <= columns.keys():
            columns.update(dict.fromkeys(row.cells))
    if not columns and not may_be_empty:
        remedy = "write one JSON object per line" if shape.kind == "lines" else "write one array of JSON objects"
        why = f"{shape.unit} {first.number}: {first.problem or 'it names no values.'}" if first else "it is empty."
        raise MidsightError(f"{path} has no row with values, {remedy}; {why}")
    return tuple(columns)


def json_rows(path: Path, shape: JsonShape, key_column: str = "") -> Iterator[Row]:
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
            row = Row(number, _text_of(data), {}, problem, location) if problem else _row(value, location)
            yield replace(row, cells={key_column: name, **row.cells}) if key_column and row.cells else row


def _member(data: bytes) -> tuple[str, bytes]:
    """Name and value of a member of an object; the value is empty if it is damaged."""
    name = _TOKEN.match(data)
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


def _text_of(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").rstrip("\r\n")


def _row(data: bytes, location: TextLocation) -> Row:
    cells, problem = read_cells(data)
    raw_text = _text_of(data if len(data) <= limits.MAX_ROW_BYTES else data[:100])
    return Row(location.number, raw_text, cells, problem, location)


def read_cells(data: bytes) -> tuple[Mapping[str, Any], str]:
    """The values of a row, or the problem with it: a sentence about "it"."""
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


def _elements(file: BinaryIO, offset: int, *, alone: bool) -> Iterator[tuple[int, bytes, str]]:
    """Offset, bytes and problem of each element of the array, or member of the object, that begins at the offset.

    The problem is empty if the element may be read. Only strings, brackets and commas separate elements, so a broken
    element does not affect the others. `alone` says whether nothing may follow the array.
    """
    file.seek(offset)  # of text[0]
    text = file.read(_CHUNK_BYTES)
    begin = position = 1
    opened = [text[:1]]
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
    if not alone:
        return
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

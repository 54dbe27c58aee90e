"""How a JSON file holds its rows, which the file itself says and not its name; no more of it is read than decides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn, cast

from midsight.buckets.path import Place
from midsight.errors import MidsightError, Option
from midsight.samples import rows as limits
from midsight.samples.folders import IMAGE_SUFFIXES
from midsight.samples.json_rows import LINES, PASSED_OVER, TOKEN, JsonShape, read_cells, text_of
from midsight.samples.nesting import skip_nested
from midsight.samples.rows import quoted_names, skip_byte_order_mark
from midsight.samples.text_files import open_bytes, table_suffix

NAMES_IN_ROWS = frozenset(("image", "images", "question", "query", "text", "conversations", "messages"))
"""An object with one of these names is a row, or a table written column by column, but not a dict of rows."""
NAMES_OF_ROWS = frozenset(("data", "questions", "rows", "samples", "examples", "instances"))
"""A list of objects with one of these names is the table, whatever else the object holds."""
NAMES_OF_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testmini", "eval"))
"""Names of lists, and of files, that are splits of a dataset and not parts of one table."""
BYTES_LOOKED_AT = 4 << 20
"""How far an object is read for a list that is surely the table, if its beginning has to decide and has a list."""
BYTES_WITHOUT_ROWS = 20_000_000
"""How far it is read if it has none."""
_CHUNK_BYTES = 1 << 20
_LINES_LOOKED_AT = 10
_MEMBERS_LOOKED_AT = 100
_BRACKETS_LOOKED_AT = 100
"""How many brackets of a value that decides nothing are looked at before its end is looked for."""


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

    @property
    def are_objects(self) -> bool:
        """Whether all members are objects."""
        return {*self.kinds.values()} == {"{"}


class _Search:
    """Takes the tokens of an object until they decide its shape."""

    def __init__(self, offset: int, ends: frozenset[str]) -> None:
        """`ends` are the names of lists that are surely the table."""
        self.members = _Members(offset)
        self.opened: list[bytes] = []
        """The brackets that are open."""
        self._ends = ends
        self._objects = [self.members]
        self._names = ["", ""]
        self._previous = b""
        self._opened_at = 0
        self._passed = 0
        """How many brackets were looked at in a value that decides nothing."""
        self._deeper = 0
        """How many brackets are open in it beyond those of `opened`."""

    @property
    def has_lists(self) -> bool:
        """Whether a list of objects was found."""
        return bool(self.members.lists or self._objects[-1].lists)

    def pass_over(self, text: bytes, position: int) -> int:
        """Where to look for the next token: after what decides nothing, or still in it."""
        depth = len(self.opened)
        outer = 1 if self.opened[1:2] == [b"["] else 2
        self._passed = self._passed + 1 if depth > outer else 0
        if depth < 2 or self._may_begin_list():
            return position
        if self._passed > _BRACKETS_LOOKED_AT:
            return self._skip(text, position, outer)
        if depth > outer or len(self._objects[1].kinds) > _MEMBERS_LOOKED_AT:
            return cast("re.Match[bytes]", PASSED_OVER.match(text, position)).end()
        return position

    def _skip(self, text: bytes, position: int, outer: int) -> int:
        """Where the value ends that is in `outer` brackets, at its last bracket; or where to go on in more text."""
        position, depth = skip_nested(text, position, len(self.opened) - outer + self._deeper)
        del self.opened[outer + 1 :]
        self._deeper = max(0, depth - 1)
        self._previous = b""
        return position

    def take(self, token: bytes, at: int) -> bool:
        """Takes the token that begins at `at`, in bytes; whether the shape is decided."""
        depth, previous = len(self.opened), self._previous
        begins_list = token == b"{" and self._may_begin_list()
        self._previous = token
        if depth == 0 and previous:
            self.members.followed = True
            return True
        if depth in (1, 2) and self.opened[-1] == b"{":
            is_name = previous in (b"{", b",") and token.startswith(b'"')
            if self._take_member(depth - 1, token, at, is_name=is_name):
                return True
        elif begins_list:
            name = self._names[depth - 2]
            self._objects[depth - 2].lists[name] = self._opened_at
            if name in self._ends and (depth == 2 or (self._names[0] in self._ends and not self._objects[1].is_row)):
                return True
        if token in (b"{", b"["):
            self.opened.append(token)
            self._opened_at = at
        elif token in (b"}", b"]") and self.opened:
            self.opened.pop()
        return False

    def _may_begin_list(self) -> bool:
        """Whether the next token is the first of a list that is a member of the object or of an object in it."""
        depth = len(self.opened)
        return self._previous == b"[" and depth in (2, 3) and self.opened[0] == self.opened[-2] == b"{"

    def _take_member(self, depth: int, token: bytes, at: int, *, is_name: bool) -> bool:
        """Takes a token of the object (`depth` 0) or of an object in it (1); whether so many members decide."""
        kinds = self._objects[depth].kinds
        if is_name:
            are_by_id = depth == 0 or (self._names[0] in NAMES_OF_ROWS and self._objects[1].are_objects)
            if len(kinds) >= _MEMBERS_LOOKED_AT and are_by_id:
                return True
            self._names[depth] = _name_of(token)
            kinds[self._names[depth]] = ""
        elif token in (b"{", b"["):
            kinds[self._names[depth]] = token.decode()
            if depth == 0 and token == b"{":
                self._objects[1:] = [_Members(at)]
                self.members.inner[self._names[0]] = self._objects[1]
        return False


def json_shape(path: Place, split: str | None = None, *, beginning: bool = False) -> JsonShape:
    """How the file holds its rows, whatever its name ends in; `split` names one of several lists in an object.

    With `beginning`, a list at the beginning of an object is taken as its rows although another list may follow, and an
    object without any at its beginning is refused. Raises MidsightError if the file holds no rows.
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
    if split is not None and not _is_named(path, split):
        _refuse_split(path, _read_members(path, offset, frozenset(), is_bounded=True), split)
    ends = NAMES_OF_ROWS if split is None else frozenset((split,))
    members = _read_members(path, offset, ends, is_bounded=beginning and split is None)
    shape = LINES if members.followed else _shape_of_object(path, offset, members, split)
    is_alone = members.is_row and not members.followed and len(lines) > 1 and not any(are_rows)
    return JsonShape("object", offset) if shape is LINES and is_alone else shape


def _shape_of_object(path: Place, offset: int, members: _Members, split: str | None) -> JsonShape:
    """The shape of a file that is one object: a row, a table within, or rows by id."""
    promises_lines = members.cut_off and table_suffix(path) != ".json"  # its first row may begin with a long list
    if _holds_columns(members) and not promises_lines:
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
        if name in NAMES_OF_ROWS and not inner.is_row and inner.are_objects:
            return JsonShape("members", inner.begin, inside=True)
    if members.cut_off:
        return _shape_by_beginning(path, offset, members)
    return JsonShape("members", offset) if members.are_objects else LINES


def _shape_by_beginning(path: Place, offset: int, members: _Members) -> JsonShape:
    """The shape of an object whose beginning has no list of rows: rows by id, if its members look like rows.

    If they do not, it is a long row, unless the file's name promises one value; then this raises MidsightError.
    """
    if members.are_objects and (len(members.kinds) > 1 or next(iter(members.inner.values())).is_row):
        return JsonShape("members", offset, may_be_another=next(iter(members.kinds)))
    if table_suffix(path) != ".json":
        return LINES
    raise MidsightError(
        f"{path} has no list of rows in its first {BYTES_WITHOUT_ROWS // 1_000_000} MB; name the list with ",
        Option("split"),
        ", or write its rows as JSON Lines.",
    )


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


def _name_of(token: bytes) -> str:
    """The name that a string of JSON spells, which may have escapes for any character."""
    try:
        return json.loads(token, strict=False)
    except ValueError:  # what is wrong with it is said when rows are read
        return text_of(token[1:-1])


def choose_split(path: Place | str, splits: Sequence[str], split: str | None) -> str:
    """The split with this name, or the only one; raises MidsightError."""
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        problem = "several splits" if split is None else f"no split {split!r}"
        shown = quoted_names(splits[:20])
        raise MidsightError(f"{path} has {problem}; choose one of {shown} with ", Option("split"), ".")
    return split


def _refuse_split(path: Place, members: _Members, split: str) -> NoReturn:
    """Raises MidsightError for a list that an object does not have; `members` are those at its beginning."""
    if lists := members.lists or _inner_lists(members):
        choose_split(path, list(lists), split)
    raise MidsightError(f"{path} has no splits; leave ", Option("split", split), " out.")


def _is_named(path: Place, split: str) -> bool:
    """Whether a file may have a list named `split`, or `OUTER.INNER`: whether such a name is anywhere in it.

    Looking for a name is much faster than reading what a whole file holds. A name that JSON may spell in several ways
    is not looked for.
    """
    if not split.isascii() or json.dumps(split) != f'"{split}"' or "/" in split:
        return True
    parts = split.split(".")
    names = [f'"{".".join(parts[start:])}"'.encode() for start in range(len(parts))]
    overlap = max(map(len, names)) - 1
    with open_bytes(path) as file:
        end = b""
        while more := file.read(_CHUNK_BYTES):
            text = end + more
            if any(name in text for name in names):
                return True
            end = text[-overlap:]
    return False


def _read_members(path: Place, offset: int, ends: frozenset[str], *, is_bounded: bool) -> _Members:
    """The members of the object at the offset and of objects in it, as far as they decide its shape.

    A list whose name is in `ends` is the table, and ends the search. If the search `is_bounded`, the beginning of the
    object has to decide.
    """
    search = _Search(offset, ends)
    most = BYTES_WITHOUT_ROWS if is_bounded else limits.MAX_ROW_BYTES
    with open_bytes(path) as file:
        for token, at in _tokens(file, offset, most, search):
            enough = BYTES_LOOKED_AT if search.has_lists else BYTES_WITHOUT_ROWS
            if is_bounded and at - offset > enough:
                break
            if token and search.take(token, at):
                return search.members
    search.members.cut_off = is_bounded and bool(search.opened)
    return search.members


def _tokens(file: BinaryIO, offset: int, most: int, search: _Search) -> Iterator[tuple[bytes, int]]:
    """Whole strings, brackets and commas from the offset on, each with where it is in the file, in bytes.

    After each chunk of the file, an empty token says how far it is read. What decides nothing for the `search` is left
    out. A string of more than `most` bytes ends the tokens.
    """
    file.seek(offset)
    text, more = b"", file.read(_CHUNK_BYTES)
    while more:
        text += more
        position = 0
        while True:
            position = search.pass_over(text, position)
            token = TOKEN.search(text, position)
            if token is None or token[0] == b'"':
                position = token.start() if token else len(text)
                break
            position = token.end()
            yield token[0], offset + token.start()
        offset, text = offset + position, text[position:]
        yield b"", offset
        more = b"" if len(text) > most else file.read(max(_CHUNK_BYTES, len(text)))

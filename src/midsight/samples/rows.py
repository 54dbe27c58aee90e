"""Tables as rows: named values, or why a row has none; and the lines of text files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from midsight.errors import MidsightError, SampleError
from midsight.samples.places import TablePlace, TextPlace

MAX_RECORD_BYTES = 256_000_000
"""Length of a line or record above which it is no row; room for several images in base64."""

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "images", "stream"]
"""How rows are stored; `images` are files in a folder, a `stream` is read while it arrives."""

_MAX_NESTING = 100
"""Lists and objects inside each other; deeper ones could not be written again."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as the table has it."""

    number: int
    """Line of the file on which it begins, element of its array, or row of the table, from 1."""
    raw: str
    """Its text, for the id of a row that fails; empty where a table has no text."""
    cells: Mapping[str, Any]
    """Its values by column name; empty when there is a problem."""
    problem: str = ""
    """Why it has no cells."""
    place: TextPlace | TablePlace | None = None
    """Where its cells can be read again; None for a stream."""


@dataclass(frozen=True)
class Table:
    """What a file or folder holds, or its first rows; they are read while they are asked for."""

    path: Path | str
    """As the user named it."""
    kind: Kind
    """How it is stored."""
    unit: Literal["line", "element", "row"]
    """What `number` counts."""
    columns: tuple[str, ...]
    """Of the header or schema, or every name that occurs in these rows, in the order of the file."""
    sha256: str
    """Of the file's bytes; of several files, of their digests, in their order."""
    rows: Callable[[str], Iterator[Row]]
    """Reads the rows; its argument is the image column. Blank lines are no rows."""
    root: Path
    """The folder that image paths start from by default."""
    binary: frozenset[str] = frozenset()
    """Columns that hold bytes; only the image column of them is read."""


def check_storable(value: Any) -> None:
    """Raises SampleError for what UTF-8 text cannot hold: half of a surrogate pair, or what is no JSON value."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise SampleError("it holds half of a surrogate pair (like \\ud800), which is no character.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError(f"it holds a value that cannot be stored: {error}.") from error


def check_nesting(cells: Mapping[str, Any]) -> None:
    """Raises SampleError for values that nest too deep."""
    level: list[Any] = [cells]
    for _ in range(_MAX_NESTING):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = list(itertools.chain.from_iterable(inner))
    if level:
        raise SampleError(f"it nests lists and objects more than {_MAX_NESTING} deep.")


def named(columns: Iterable[str]) -> str:
    """Column names for a message."""
    return ", ".join(map(repr, columns))


def shown(value: Any) -> str:
    """A value for a message, as JSON, shortened."""
    text = json.dumps(value, default=lambda other: f"<{type(other).__name__}>")
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Each line's number from 1, offset in bytes and bytes, without byte order mark.

    A line of more than MAX_RECORD_BYTES comes cut off, one byte longer than that. Raises MidsightError
    for UTF-16.
    """
    offset = skip_mark(file, path)
    for number in itertools.count(1):
        line, length = read_line(file)
        if not line:
            return
        yield number, offset, line
        offset += length


def skip_mark(file: BinaryIO, path: Path) -> int:
    """Where the text begins, in bytes; raises MidsightError for UTF-16."""
    mark = file.read(3)
    if mark.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise MidsightError(f"{path} is encoded as UTF-16; save it as UTF-8.")
    return file.seek(3 if mark == b"\xef\xbb\xbf" else 0)


def read_line(file: BinaryIO) -> tuple[bytes, int]:
    """The next line and its length; of one longer than MAX_RECORD_BYTES that and one byte, the rest passed over."""
    line = rest = file.readline(MAX_RECORD_BYTES + 1)
    length = len(line)
    while len(line) > MAX_RECORD_BYTES and rest and not rest.endswith(b"\n"):
        rest = file.readline(1 << 20)
        length += len(rest)
    return line, length


def too_long() -> str:
    """Why such a line is no row."""
    return f"it has more than {MAX_RECORD_BYTES:,} bytes."


NOT_UTF_8 = "it is not encoded as UTF-8."

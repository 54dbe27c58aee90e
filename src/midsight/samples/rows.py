"""Tables as rows, and the lines of text files. A row has named values, or the reason why it has none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from midsight.buckets.path import Place
from midsight.errors import MidsightError, Option, SampleError
from midsight.samples.locations import RowLocation

MAX_ROW_BYTES = 256_000_000
"""Longest row of a text file, with room for several images in base64; longer rows fail."""

TableKind = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "tar", "images", "stream"]
"""How rows are stored; `images` are the files of a folder, a `stream` arrives over the network."""

NOT_UTF_8 = "it is not encoded as UTF-8; save the file as UTF-8."

WRITTEN_NULLS = ("nan", "NaN", "<NA>")
"""What pandas writes for a missing value that it turns into text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    number: int
    """Line of the file, element of the JSON array, or row of the table, from 1."""
    raw_text: str
    """The row's text, for the id of a failed row; empty if the table is not a text file."""
    cells: Mapping[str, Any]
    """Column name -> value; empty if there is a problem."""
    problem: str = ""
    """Why the row has no cells: a sentence about "it", or empty."""
    location: RowLocation | None = None
    """Where the cells can be read again; None for a stream."""
    place: str = ""
    """File and row in it, for messages; empty for a table of one file."""


@dataclass(frozen=True)
class Table:
    """A dataset before its rows become samples; rows are read one by one."""

    path: Place | str
    """As the user named it."""
    kind: TableKind
    """How rows are stored."""
    unit: Literal["line", "element", "row"]
    """What `Row.number` counts."""
    columns: tuple[str, ...]
    """Header or schema, or for JSON all names that occur, in the order of the file."""
    sha256: Callable[[], str]
    """Hash of the file's bytes; for several files, of their digests in order. It takes as long as reading them."""
    rows: Callable[[Collection[str]], Iterator[Row]]
    """Names of the image columns -> the rows, without blank lines."""
    root: Place
    """The folder that image paths start from by default."""
    binary_columns: frozenset[str] = frozenset()
    """Columns that hold bytes; they are not read, except for image columns."""
    id_column: str | None = None
    """Column of ids that the table has by its form, such as the names in an object of rows."""
    image_columns: tuple[str, ...] = ()
    """Columns that hold images by the table's form; empty if only names tell."""
    notes: Sequence[str] = ()
    """What the user should know about how the table was read; complete once all rows are read."""
    other_rows: tuple[str | Option, ...] = ()
    """How to choose other rows of the file, as the end of a message; empty if there are no others."""


def validate_storable(value: Any) -> None:
    """Raises SampleError if the value cannot be stored as JSON in UTF-8, because of a lone surrogate for example."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise SampleError("it holds half of a surrogate pair (like \\ud800), which is not a character.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError(f"it holds a value that cannot be stored: {error}.") from error


def quoted_names(columns: Iterable[str]) -> str:
    """Column names for a message: quoted, separated by commas."""
    return ", ".join(map(repr, columns))


def shortened_json(value: Any) -> str:
    """A value for a message: as JSON, at most 60 characters."""
    text = json.dumps(value, default=lambda other: f"<{type(other).__name__}>")
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_lines(file: BinaryIO, path: Place) -> Iterator[tuple[int, int, bytes]]:
    """Yields number from 1, offset in bytes, and bytes of each line, without byte order mark.

    A line longer than MAX_ROW_BYTES is cut off after one byte more. Raises MidsightError for UTF-16.
    """
    offset = skip_byte_order_mark(file, path)
    for number in itertools.count(1):
        line = read_line(file)
        if not line:
            return
        yield number, offset, line
        offset += len(line) + skip_rest(file, line)


def skip_byte_order_mark(file: BinaryIO, path: Place) -> int:
    """Moves to the beginning of the text and returns its offset in bytes; raises MidsightError for UTF-16."""
    mark = file.read(3)
    if mark.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise MidsightError(f"{path} is encoded as UTF-16; save it as UTF-8.")
    return file.seek(3 if mark == b"\xef\xbb\xbf" else 0)


def read_line(file: BinaryIO, most: int | None = None) -> bytes:
    """The next line, cut off after one byte more than `most`, which is MAX_ROW_BYTES by default."""
    return file.readline((MAX_ROW_BYTES if most is None else most) + 1)


def skip_rest(file: BinaryIO, line: bytes) -> int:
    """Moves to the end of a line that `read_line` has cut off, and returns the number of bytes left out.

    Only who needs the next line has to wait for that.
    """
    length, rest = 0, line
    while len(line) > MAX_ROW_BYTES and rest and not rest.endswith(b"\n"):
        rest = file.readline(1 << 20)
        length += len(rest)
    return length


def too_long_reason(most: int | None = None) -> str:
    """Why a row of more bytes than `most` fails, which is MAX_ROW_BYTES by default."""
    return f"it has more than {MAX_ROW_BYTES if most is None else most:,} bytes."

"""Rows of JSONL and CSV files: named values, or why a line has none."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError, SampleError

_MAX_NESTING = 100
"""Lists and objects inside each other; deeper ones could not be written again."""


@dataclass(frozen=True)
class Row:
    """One row as the file has it."""

    line: int
    """Line of the file on which it begins, from 1."""
    raw: str
    """Its text, for the id of a row that fails."""
    cells: Mapping[str, Any]
    """Its values by column name; empty when there is a problem."""
    problem: str = ""
    """Why it has no cells."""


@dataclass(frozen=True)
class Rows:
    """What a file holds, or its first rows."""

    columns: tuple[str, ...]
    """Of the header, or every name that occurs in these rows, in the order of the file."""
    rows: tuple[Row, ...]
    """In the order of the file, blank lines left out."""
    sha256: str
    """Of the whole file's bytes, hex."""


def read_rows(path: Path, limit: int | None = None) -> Rows:
    """The first `limit` rows of a `.jsonl`, `.ndjson` or `.csv` file, or all of them.

    Raises MidsightError for a file of another kind, that is not there or cannot be read, or that names no columns.
    """
    parsers = {".jsonl": _parse_jsonl, ".ndjson": _parse_jsonl, ".csv": _parse_csv}
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        raise MidsightError(f"{path} is no table that can be read; supported are {', '.join(parsers)}.")
    if not path.is_file():
        raise MidsightError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}; give a table file.")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            columns, rows = parse(_lines(file, path), path, limit)
    except OSError as error:
        raise MidsightError(f"{path} cannot be read: {error.strerror or error}.") from error
    return Rows(columns, rows, sha256)


def check_storable(value: Any) -> None:
    """Raises SampleError for what UTF-8 text cannot hold: half of a surrogate pair, or what is no JSON value."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise SampleError("it holds half of a surrogate pair (like \\ud800), which is no character.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError(f"it holds a value that cannot be stored: {error}.") from error


def named(columns: Iterable[str]) -> str:
    """Column names for a message."""
    return ", ".join(map(repr, columns))


def shown(value: Any) -> str:
    """A JSON value for a message, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines and their numbers from 1, without byte order mark; raises MidsightError for UTF-16."""
    for number, line in enumerate(file, start=1):
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise MidsightError(f"{path} is encoded as UTF-16; save it as UTF-8.")
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _parse_jsonl(
    lines: Iterable[tuple[int, bytes]], path: Path, limit: int | None
) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    written = ((number, line) for number, line in lines if line.strip())
    rows = tuple(_jsonl_row(number, line) for number, line in itertools.islice(written, limit))
    columns = tuple(dict.fromkeys(name for row in rows for name in row.cells))
    if not columns:
        why = f"line {rows[0].line}: {rows[0].problem or 'it names no values.'}" if rows else "it is empty."
        raise MidsightError(f"{path} has no row with values, write one JSON object per line; {why}")
    return columns, rows


def _jsonl_row(number: int, line: bytes) -> Row:
    raw = line.decode("utf-8", "backslashreplace").rstrip("\r\n")
    try:
        cells = json.loads(line.decode("utf-8"))
        if not isinstance(cells, dict):
            return Row(number, raw, {}, "it is no JSON object.")
        if raw.count("[") + raw.count("{") > _MAX_NESTING:
            _check_nesting(cells)
        if "\\u" in raw:
            check_storable(cells)
    except SampleError as error:
        return Row(number, raw, {}, str(error))
    except UnicodeDecodeError:
        return Row(number, raw, {}, "it is not encoded as UTF-8.")
    except (ValueError, RecursionError) as error:
        return Row(number, raw, {}, f"it is no JSON that can be read: {error}.")
    return Row(number, raw, cells)


def _check_nesting(cells: Mapping[str, Any]) -> None:
    level: list[Any] = [cells]
    for _ in range(_MAX_NESTING):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = list(itertools.chain.from_iterable(inner))
    if level:
        raise SampleError(f"it nests lists and objects more than {_MAX_NESTING} deep.")


def _parse_csv(
    lines: Iterable[tuple[int, bytes]], path: Path, limit: int | None
) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    # strict: a quote that is never closed would else swallow the rest of the file without a word
    reader = csv.reader(_text(lines, path), strict=True)
    try:
        columns = next((tuple(cells) for cells in reader if cells), ())
    except csv.Error as error:
        raise MidsightError(f"{path} has a header that is no CSV: {error}.") from error
    if not columns:
        raise MidsightError(f"{path} is empty; its first row must name the columns.")
    if repeated := {name: None for name in columns if columns.count(name) > 1}:
        raise MidsightError(f"{path} has several columns named {named(repeated)}; rename or remove them.")
    return columns, tuple(itertools.islice(_csv_rows(reader, columns), limit))


def _text(lines: Iterable[tuple[int, bytes]], path: Path) -> Iterator[str]:
    for number, line in lines:
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise MidsightError(f"{path} is not encoded as UTF-8 (line {number}); save it as UTF-8.") from error


def _csv_rows(reader: Any, columns: Sequence[str]) -> Iterator[Row]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:  # the reader goes on with the next line
            yield Row(line, "", {}, f"it is no CSV that can be read: {error}.")
            continue
        if cells is None:
            return
        if len(cells) == len(columns):
            yield Row(line, ",".join(cells), dict(zip(columns, cells, strict=True)))
        elif cells:
            problem = f"it has {len(cells)} cells, the header {len(columns)}."
            yield Row(line, ",".join(cells), {}, problem)

"""Parquet files and Arrow stream files as rows, a few megabytes at a time."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from midsight.errors import MidsightError
from midsight.samples.places import TablePlace
from midsight.samples.rows import Row, Table, named

_PIECE_BYTES = 16_000_000
"""How much of a table is turned into Python values at once."""
_KEPT_BYTES = 128_000_000
"""How much of a row group's images stays in memory while samples ask for them."""


def open_parquet(path: Path, files: Sequence[Path], root: Path) -> Table:
    """The rows of Parquet files, one after the other; raises MidsightError where they differ in their columns."""
    schemas = [_reading(file, pq.read_schema) for file in files]
    _refuse_other_columns(files, schemas)
    return Table(
        path, "parquet", "row", tuple(schemas[0].names), joint_sha256(files),
        lambda image: _numbered(_parquet_rows(file, _wanted(schemas[0], image)) for file in files),
        root, binary_columns(schemas[0]),
    )  # fmt: skip


def open_arrow(path: Path, files: Sequence[Path]) -> Table:
    """The rows of Arrow stream files, as `datasets` saves them, one after the other."""
    schemas = [_reading(file, lambda file: _open_arrow(file)[1]) for file in files]
    _refuse_other_columns(files, schemas)
    if encoded := [field.name for field in schemas[0] if _holds(field.type, pa.types.is_dictionary)]:
        raise MidsightError(f"{path} has dictionary-encoded columns ({named(encoded)}); save them as plain ones.")
    return Table(
        path, "arrow", "row", tuple(schemas[0].names), joint_sha256(files),
        lambda image: _numbered(_arrow_rows(file, _wanted(schemas[0], image)) for file in files),
        path, binary_columns(schemas[0]),
    )  # fmt: skip


def joint_sha256(files: Sequence[Path]) -> str:
    """Hex; of one file its bytes', of several that of their digests, joined."""
    digests = []
    for file in files:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_cell(place: TablePlace, column: str) -> Any:
    """The value of one cell, as when the row was read; raises MidsightError for a file that is damaged."""
    with _one_reader:
        if place.file.suffix == ".arrow":
            return _reading(place.file, lambda _: _arrow_value(place, column))
        return _reading(place.file, lambda file: _row_group(file, place.group, column).value(place.row))


def plain(value: Any) -> Any:
    """The value as JSON has it: what is no number, text, list or object becomes text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _reading(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(file)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise MidsightError(f"{file} cannot be read: {reason}; copy or download it again.") from error


def _refuse_other_columns(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> None:
    for file, schema in zip(files, schemas, strict=True):
        names = schema.names
        if repeated := {name: None for name in names if names.count(name) > 1}:
            raise MidsightError(f"{file} has several columns named {named(repeated)}; rename or remove them.")
        if set(names) != set(schemas[0].names):
            raise MidsightError(
                f"{file} has the columns {named(names)}, {files[0].name} {named(schemas[0].names)}; "
                "files of one dataset have the same ones."
            )


def _wanted(schema: pa.Schema, image: str) -> list[str]:
    binary = binary_columns(schema)
    return [name for name in schema.names if name == image or name not in binary]


def binary_columns(schema: pa.Schema) -> frozenset[str]:
    """The columns that hold bytes, alone or inside of lists and structs."""
    return frozenset(field.name for field in schema if _holds(field.type, _is_binary))


def _is_binary(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)


def _holds(type_: pa.DataType, is_such: Callable[[pa.DataType], bool]) -> bool:
    """Whether the type, or one inside of it, is such a type."""
    if isinstance(type_, pa.ExtensionType):
        return _holds(type_.storage_type, is_such)
    if is_such(type_):
        return True
    if pa.types.is_dictionary(type_):
        return _holds(type_.value_type, is_such)
    return any(_holds(type_.field(i).type, is_such) for i in range(type_.num_fields))


def _numbered(files: Iterable[Iterator[tuple[Path, int, int, dict[str, Any]]]]) -> Iterator[Row]:
    for number, (file, group, row, cells) in enumerate(itertools.chain.from_iterable(files), start=1):
        yield Row(number, "", cells, "", TablePlace(file, group, row, number))


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[tuple[Path, int, int, dict[str, Any]]]:
    table = _reading(file, _open_parquet)
    for group in range(table.num_row_groups):
        row = 0
        pieces = table.iter_batches(_rows_at_once(table, group), row_groups=[group], columns=columns)
        while (piece := _reading(file, lambda _, pieces=pieces: next(pieces, None))) is not None:
            for cells in _cells(file, piece):
                yield file, group, row, cells
                row += 1


def _arrow_rows(file: Path, columns: list[str]) -> Iterator[tuple[Path, int, int, dict[str, Any]]]:
    source, schema = _reading(file, _open_arrow)
    while (begin := source.tell()) < source.size():
        batch = _reading(file, lambda _: _next_batch(source, schema, columns))
        if batch is None:
            return
        step = max(1, min(1000, _PIECE_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, step):
            for row, cells in enumerate(_cells(file, batch.slice(start, step)), start=start):
                yield file, begin, row, cells


def _cells(file: Path, piece: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    values: list[list[Any]] = []
    for name, column in zip(piece.schema.names, piece.columns, strict=True):
        try:
            as_text = pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type)
            values.append((column.cast(pa.string()) if as_text else column).to_pylist())
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise MidsightError(f"{file} has values in column {name!r} that cannot be read: {error}.") from error
    for row in zip(*values, strict=True):
        yield dict(zip(piece.schema.names, row, strict=True))


def _open_parquet(file: Path) -> pq.ParquetFile:
    return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 20)


def _open_arrow(file: Path) -> tuple[pa.MemoryMappedFile, pa.Schema]:
    """The file, standing at its first record batch."""
    source = pa.memory_map(str(file))
    return source, pa.ipc.open_stream(source).schema


def _next_batch(source: pa.MemoryMappedFile, schema: pa.Schema, columns: list[str]) -> pa.RecordBatch | None:
    """Columns of the record batch at which the file stands, not copied; None at the end of the stream."""
    try:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema).select(columns)
    except EOFError:
        return None
    batch.validate(full=True)  # Arrow trusts the offsets in a file, whatever memory they point to
    return batch


def _rows_at_once(table: pq.ParquetFile, group: int) -> int:
    facts = table.metadata.row_group(group)
    return max(1, min(1000, _PIECE_BYTES * facts.num_rows // max(1, facts.total_byte_size)))


class _RowGroup:
    """One column of a row group, read forwards; the last rows stay in memory."""

    def __init__(self, file: Path, group: int, column: str) -> None:
        self._table = _open_parquet(file)
        self._group = group
        self._column = column
        self._start()

    def _start(self) -> None:
        rows = _rows_at_once(self._table, self._group)
        self._pieces = self._table.iter_batches(rows, row_groups=[self._group], columns=[self._column])
        self._kept: deque[pa.RecordBatch] = deque()
        self._first_row = self._next_row = self._bytes = 0

    def value(self, row: int) -> Any:
        """The value in a row of the group, from 0; a row that is no longer in memory is read once more."""
        if row < self._first_row:
            self._start()
        while row >= self._next_row:
            piece = next(self._pieces)
            self._kept.append(piece)
            self._next_row += piece.num_rows
            self._bytes += piece.nbytes
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                gone = self._kept.popleft()
                self._first_row += gone.num_rows
                self._bytes -= gone.nbytes
        first = self._first_row
        for piece in self._kept:
            if row < first + piece.num_rows:
                return piece.column(0)[row - first].as_py()
            first += piece.num_rows
        raise pa.ArrowInvalid(f"row group {self._group} has no row {row}")


# The samples of one process ask in the order of the table, a sample of several images in two places at most.
_one_reader = Lock()
_row_group = lru_cache(maxsize=2)(_RowGroup)
_arrow_file = lru_cache(maxsize=2)(_open_arrow)


def _arrow_value(place: TablePlace, column: str) -> Any:
    source, schema = _arrow_file(place.file)
    source.seek(place.group)
    batch = _next_batch(source, schema, [column])
    if batch is None:
        raise pa.ArrowInvalid("it has become shorter since it was read")
    return batch.column(0)[place.row].as_py()


def forget() -> None:
    """Closes the files that are kept open for the images in them."""
    _row_group.cache_clear()
    _arrow_file.cache_clear()

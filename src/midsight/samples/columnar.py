"""Parquet and Arrow files as rows, a few megabytes at a time."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from midsight.buckets.blocks import LARGEST_BLOCK, open_in_blocks
from midsight.buckets.path import BucketPath, Place
from midsight.buckets.reading import each_file
from midsight.errors import MidsightError
from midsight.samples.locations import TableLocation
from midsight.samples.rows import Row, Table, quoted_names
from midsight.samples.text_files import close_compressed_files

_PIECE_BYTES = 16_000_000
"""How much of a table is turned into Python values at once."""
_KEPT_BYTES = 128_000_000
"""How much of a row group's images stays in memory while samples ask for them."""

_FILE_MAGIC = b"ARROW1\0\0"
"""How an Arrow file begins that has a list of its batches at its end; between the two it is a stream."""

LocatedCells = tuple[Place, int, int, dict[str, Any]]
"""File, group and row as in TableLocation, and the row's cells."""


def open_parquet(path: Place, files: Sequence[Place], root: Place) -> Table:
    """The rows of Parquet files, one file after the other; raises MidsightError if their columns differ."""
    schemas = [*each_file(files, lambda file: _read_file(file, _parquet_schema))]
    _validate_columns(files, schemas)
    return Table(
        path, "parquet", "row", tuple(schemas[0].names), lambda: joint_sha256(files),
        lambda images: _numbered(_parquet_rows(file, _columns_to_read(schemas[0], images)) for file in files),
        root, binary_columns(schemas[0]),
    )  # fmt: skip


def open_arrow(path: Place, files: Sequence[Place], root: Place) -> Table:
    """The rows of Arrow files, as `datasets` saves them or as Feather files, one file after the other.

    Raises MidsightError if their columns differ or are dictionary-encoded.
    """
    schemas = [*each_file(files, lambda file: _read_file(file, lambda file: _open_arrow(file)[1]))]
    _validate_columns(files, schemas)
    if encoded := [field.name for field in schemas[0] if _contains_type(field.type, pa.types.is_dictionary)]:
        raise MidsightError(
            f"{path} has dictionary-encoded columns ({quoted_names(encoded)}); save them as plain ones."
        )
    return Table(
        path, "arrow", "row", tuple(schemas[0].names), lambda: joint_sha256(files),
        lambda images: _numbered(_arrow_rows(file, _columns_to_read(schemas[0], images)) for file in files),
        root, binary_columns(schemas[0]),
    )  # fmt: skip


def joint_sha256(files: Sequence[Place]) -> str:
    """Hex SHA-256 of a file's bytes, or in a bucket of its size and ETag; for several files, of their joined digests.

    An object is not downloaded to hash it.
    """
    digests = [*each_file(files, _sha256)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(file: Place) -> str:
    if isinstance(file, BucketPath) and (version := file.stat()).e_tag:
        return hashlib.sha256(f"{version.st_size} {version.e_tag}".encode()).hexdigest()
    with open_in_blocks(file) as opened:
        return hashlib.file_digest(cast("Any", opened), "sha256").hexdigest()


def read_cell(location: TableLocation, column: str) -> Any:
    """The value of one cell, read again; raises MidsightError if the file cannot be read."""
    with _cache_lock:
        if location.file.suffix.lower() in (".arrow", ".feather"):
            return _read_file(location.file, lambda _: _arrow_value(location, column))
        return _read_file(location.file, lambda file: _row_group(file, location.group, column).value(location.row))


def json_value(value: Any) -> Any:
    """The value with JSON types only: dates, decimals and other objects become text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def binary_columns(schema: pa.Schema) -> frozenset[str]:
    """The columns that hold bytes, directly or inside lists and structs."""
    return frozenset(field.name for field in schema if _contains_type(field.type, _is_binary))


def close_cached_files() -> None:
    """Closes the files that stay open for the images in them."""
    close_compressed_files()
    _row_group.cache_clear()
    _arrow_file.cache_clear()


def _read_file(file: Place, read: Callable[[Place], Any]) -> Any:
    """What `read` returns for the file; its errors become MidsightErrors that name the file."""
    try:
        return read(file)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise MidsightError(f"{file} cannot be read: {reason}; copy or download it again.") from error


def _validate_columns(files: Sequence[Place], schemas: Sequence[pa.Schema]) -> None:
    for file, schema in zip(files, schemas, strict=True):
        names = schema.names
        if repeated := {name: None for name in names if names.count(name) > 1}:
            raise MidsightError(f"{file} has several columns named {quoted_names(repeated)}; rename or remove them.")
        if set(names) != set(schemas[0].names):
            raise MidsightError(
                f"{file} has the columns {quoted_names(names)}, but {files[0].name} has "
                f"{quoted_names(schemas[0].names)}; all files of a dataset need the same columns."
            )


def _columns_to_read(schema: pa.Schema, images: Collection[str]) -> list[str]:
    binary = binary_columns(schema)
    return [name for name in schema.names if name in images or name not in binary]


def _is_binary(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)


def _contains_type(type_: pa.DataType, matches: Callable[[pa.DataType], bool]) -> bool:
    """Whether the type, or a type nested in it, matches."""
    if isinstance(type_, pa.ExtensionType):
        return _contains_type(type_.storage_type, matches)
    if matches(type_):
        return True
    if pa.types.is_dictionary(type_):
        return _contains_type(type_.value_type, matches)
    return any(_contains_type(type_.field(i).type, matches) for i in range(type_.num_fields))


def _numbered(files: Iterable[Iterator[LocatedCells]]) -> Iterator[Row]:
    numbers = itertools.count(1)
    for rows in files:
        for in_file, (file, group, row, cells) in enumerate(rows, start=1):
            number = next(numbers)
            yield Row(number, "", cells, "", TableLocation(file, group, row, number), f"{file}, row {in_file}")


def _parquet_rows(file: Place, columns: list[str]) -> Iterator[LocatedCells]:
    table = _read_file(file, _open_parquet)
    for group in range(table.num_row_groups):
        row = 0
        pieces = table.iter_batches(_rows_per_piece(table, group), row_groups=[group], columns=columns)
        while (piece := _read_file(file, lambda _, pieces=pieces: next(pieces, None))) is not None:
            for cells in _cells(file, piece):
                yield file, group, row, cells
                row += 1


def _arrow_rows(file: Place, columns: list[str]) -> Iterator[LocatedCells]:
    source, schema = _read_file(file, _open_arrow)
    size = source.size()
    while (offset := source.tell()) < size:
        batch = _read_file(file, lambda _: _next_batch(source, schema, columns))
        if batch is None:
            return
        step = max(1, min(1000, _PIECE_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, step):
            for row, cells in enumerate(_cells(file, batch.slice(start, step)), start=start):
                yield file, offset, row, cells


def _cells(file: Place, piece: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    values: list[list[Any]] = []
    for name, column in zip(piece.schema.names, piece.columns, strict=True):
        try:
            as_text = pa.types.is_temporal(column.type) or pa.types.is_decimal(column.type)
            values.append((column.cast(pa.string()) if as_text else column).to_pylist())
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise MidsightError(f"{file} has values in column {name!r} that cannot be read: {error}.") from error
    for row in zip(*values, strict=True):
        yield dict(zip(piece.schema.names, row, strict=True))


def _parquet_schema(file: Place) -> pa.Schema:
    return pq.read_schema(file if isinstance(file, Path) else file.open())


def _open_parquet(file: Place) -> pq.ParquetFile:
    source, buffer = (file, 1 << 20) if isinstance(file, Path) else (file.open(), LARGEST_BLOCK)
    return pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False, buffer_size=buffer)


def _open_arrow(file: Place) -> tuple[pa.NativeFile, pa.Schema]:
    """The file, positioned at its first record batch, and its schema."""
    source = pa.memory_map(str(file)) if isinstance(file, Path) else pa.PythonFile(open_in_blocks(file), "r")
    if source.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
        source.seek(0)
    return source, pa.ipc.open_stream(source).schema


def _next_batch(source: pa.NativeFile, schema: pa.Schema, columns: list[str]) -> pa.RecordBatch | None:
    """The columns of the record batch at the current position, not copied; None at the end of the stream."""
    try:
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(source), schema).select(columns)
    except EOFError:
        return None
    batch.validate(full=True)  # Arrow trusts the offsets in a file, whatever memory they point to
    return batch


def _rows_per_piece(table: pq.ParquetFile, group: int) -> int:
    metadata = table.metadata.row_group(group)
    return max(1, min(1000, _PIECE_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))


class _RowGroup:
    """One column of a Parquet row group, read forwards; the rows read last stay in memory."""

    def __init__(self, file: Place, group: int, column: str) -> None:
        self._table = _open_parquet(file)
        self._group = group
        self._column = column
        self._restart()

    def _restart(self) -> None:
        rows = _rows_per_piece(self._table, self._group)
        self._pieces = self._table.iter_batches(rows, row_groups=[self._group], columns=[self._column])
        self._kept: deque[pa.RecordBatch] = deque()
        self._first_row = self._next_row = self._kept_bytes = 0

    def value(self, row: int) -> Any:
        """The value of a row of the group, from 0; a row that has left memory is read again from the file."""
        if row < self._first_row:
            self._restart()
        while row >= self._next_row and self._read_piece():
            continue
        first = self._first_row
        for piece in self._kept:
            if row < first + piece.num_rows:
                return piece.column(0)[row - first].as_py()
            first += piece.num_rows
        raise pa.ArrowInvalid(f"row group {self._group} has no row {row}")

    def _read_piece(self) -> bool:
        """Reads the next rows; False if there are no more."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._kept.append(piece)
        self._next_row += piece.num_rows
        self._kept_bytes += piece.nbytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            dropped = self._kept.popleft()
            self._first_row += dropped.num_rows
            self._kept_bytes -= dropped.nbytes
        return True


_cache_lock = Lock()
# Samples are read in the order of the table, so two open files of each kind are enough.
_row_group = lru_cache(maxsize=2)(_RowGroup)
_arrow_file = lru_cache(maxsize=2)(_open_arrow)


def _arrow_value(location: TableLocation, column: str) -> Any:
    source, schema = _arrow_file(location.file)
    source.seek(location.group)
    batch = _next_batch(source, schema, [column])
    if batch is None:
        raise pa.ArrowInvalid("it has become shorter since it was read")
    return batch.column(0)[location.row].as_py()

"""Exports: chosen columns and rows of a run in other formats, bit for bit, rows in dataset order, streamed."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from midsight.errors import MidsightError, Option
from midsight.store.csv_export import write_csv
from midsight.store.export_target import new_target
from midsight.store.numbers import numbers_of
from midsight.store.optional import import_optional
from midsight.store.reader import Run
from midsight.store.rows import Rows, places_of
from midsight.store.schema import is_vector, run_schema
from midsight.store.vectors import vectors_of
from midsight.taps.shown import no_such_column

FORMATS = ("hdf5", "safetensors", "npz", "npy", "csv")
"""What a run can be exported to."""

ALONGSIDE = ("sample_id", "input_index")
"""Columns of every export."""
ROWS_BYTES = 64 * 2**20
"""Most bytes of one column that are made at a time."""
TEXT_BYTES = 4096
"""Longest text in an export of arrays, because every text of a column takes the space of the longest."""

_LONGEST_FILE_NAME = 255
_SAFETENSORS = {"float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64", "bool": "BOOL", "uint8": "U8"}


@dataclass(frozen=True)
class _Chosen:
    """The rows of an export, in its order."""

    run: Run
    rows: Rows

    @property
    def count(self) -> int:
        return self.rows.count

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """The `columns` of these rows, at most 64 MB at a time, with their places in the export."""
        return self.run.placed_batches(columns, self.rows)


@dataclass(frozen=True)
class _Array:
    """Shape and type of one exported column: rows of equal size, one after the other."""

    column: str
    dtype: np.dtype
    """Type of an element; for texts, a text of fixed length."""
    shape: tuple[int, ...]
    """Rows, or rows and width."""

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * (self.shape[1] if len(self.shape) > 1 else 1)


def export_run(
    run: Run,
    out: str | Path,
    format: str,
    *,
    columns: Sequence[str] | None = None,
    samples: Collection[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `columns` of the rows of `samples` to `out`: a file, or for npy a folder with a file for each column.

    Every export also has `sample_id` and `input_index`. Without `columns` it has `image_id` and all
    vector columns; for csv, all columns without vectors. Without `samples` it has all rows. Takes less
    than 1 GB of memory whatever the size of the run. Raises MidsightError for what cannot be exported,
    RunError if the disk refuses, and DamagedRunError for damaged data; `out` is then unchanged.
    """
    out = Path(out)
    if format not in FORMATS:
        raise MidsightError(f"The format {format!r} is unknown; choose from {', '.join(FORMATS)}, or halp.")
    if format == "hdf5":
        import_optional("h5py")
    chosen = _chosen_columns(run, format, columns)
    with new_target(run, out, format, folder_of=".npy" if format == "npy" else None, overwrite=overwrite) as made:
        rows = _Chosen(run, chosen_rows(run, samples))
        if format == "csv":
            write_csv(rows.batches(chosen), rows.count, chosen, made)
        else:
            _WRITERS[format](rows, [_describe(rows, name, format) for name in chosen], made)
    return out


def read_ids(file: Path) -> list[str]:
    """The sample ids in `file`: a JSON list if its name ends with .json, else one per line."""
    try:
        text = file.read_text("utf-8-sig")
        ids = json.loads(text) if file.suffix == ".json" else [line for line in text.split("\n") if line]
    except OSError as error:
        raise MidsightError(f"{file} cannot be read: {error.strerror}; give a file of sample ids.") from error
    except ValueError as error:
        raise MidsightError(f"{file} does not hold sample ids: {error}; give one per line, or a JSON list.") from error
    if not isinstance(ids, list) or not all(isinstance(sample_id, str) for sample_id in ids):
        raise MidsightError(
            f"{file} does not hold sample ids: it is not a JSON list of texts; give one per line, or such a list."
        )
    return [sample_id.removesuffix("\r") for sample_id in ids] if file.suffix != ".json" else ids


def _chosen_columns(run: Run, format: str, columns: Sequence[str] | None) -> list[str]:
    fields = {field.name: field for field in run_schema(run.spec.columns)}
    if isinstance(columns, str):
        raise MidsightError(f"The columns are the text {columns!r}; give a list of names, like [{columns!r}].")
    if columns is None:
        columns = (
            [n for n in fields if n not in run.spec.vectors] if format == "csv" else ["image_id", *run.vector_columns]
        )
    for name in columns:
        if name not in fields:
            raise no_such_column(run.path, name, list(fields))
        if format == "csv" and is_vector(fields[name]):
            raise MidsightError(
                f"The column {name} holds vectors, which csv cannot; use ", Option("format", "npy"), "."
            )
        if format != "csv" and pa.types.is_list(fields[name].type):
            raise MidsightError(
                f"The column {name} holds lists, which {format} cannot; use ", Option("format", "csv"), "."
            )
    columns = [*dict.fromkeys((*ALONGSIDE, *columns))]
    for name in columns:
        if why := _unusable_name(name, columns, format):
            raise MidsightError(
                f"The column {name!r} {why}, so {format} cannot hold it; use another ", Option("format"), "."
            )
    return columns


def _unusable_name(name: str, columns: Sequence[str], format: str) -> str:
    """Why a file of `format` would not give the column back under its name; empty if it would."""
    if not name and format in ("hdf5", "npy"):
        return "has no name"
    if "\0" in name and format == "npz":
        return "has a zero byte in its name"
    if format == "npz" and name.endswith(".npy") and name.removesuffix(".npy") in columns:
        return f"cannot be told from {name.removesuffix('.npy')!r}"
    if format == "safetensors" and name == "__metadata__":
        return "has a reserved name"
    if format == "npy" and len(escaped_name(name)) + len(".npy") > _LONGEST_FILE_NAME:
        return "has a name that is too long for a file"
    return ""


def escaped_name(column: str) -> str:
    """The name of a file (npy) or a dataset (hdf5) for a column; `urllib.parse.unquote` gives the column back.

    >>> escaped_name("a/b"), escaped_name(".")
    ('a%2Fb', '%2E')
    """
    name = quote(column, safe=" ")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def chosen_rows(run: Run, samples: Collection[str] | None) -> Rows:
    """The rows of `samples`, or all, in dataset order; raises MidsightError for an id that the run does not have."""
    indices = [numbers_of(batch.column("input_index")) for batch in run.batches(["input_index"])]
    input_index = np.concatenate([np.empty(0, np.int64), *indices])
    ids = (batch.column("sample_id").to_pylist() for batch in run.batches(["sample_id"]))
    stored = np.arange(len(run)) if samples is None else places_of(run.path, ids, samples)
    return Rows.of_stored(stored[np.argsort(input_index[stored], kind="stable")], len(run))


def _describe(rows: _Chosen, column: str, format: str) -> _Array:
    field = run_schema(rows.run.spec.columns).field(column)
    if is_vector(field):
        return _Array(column, np.dtype(field.type.value_type.to_pandas_dtype()), (rows.count, field.type.list_size))
    if not pa.types.is_string(field.type):
        return _Array(column, np.dtype(field.type.to_pandas_dtype()), (rows.count,))
    longest = _longest_text(rows, column, format)
    if format == "safetensors":
        return _Array(column, np.dtype(np.uint8), (rows.count, longest))
    return _Array(column, np.dtype(f"S{longest}" if format == "hdf5" else f"U{longest}"), (rows.count,))


def _longest_text(rows: _Chosen, column: str, format: str) -> int:
    longest = 1
    for batch, _ in rows.batches([column]):
        for text in _filled(batch.column(column), column).to_pylist():
            size = len(text.encode())
            if size > TEXT_BYTES or text.endswith("\0"):
                why = "ends with a zero byte" if size <= TEXT_BYTES else f"is longer than {TEXT_BYTES} bytes"
                raise MidsightError(
                    f"A text of the column {column} {why}, which {format} cannot hold; use ",
                    Option("format", "csv"),
                    ".",
                )
            longest = max(longest, len(text) if format in ("npy", "npz") else size)
    return longest


def _filled(values: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    if values.null_count:
        raise MidsightError(
            f"The column {column} has rows without a value, which an array cannot hold; use ",
            Option("format", "csv"),
            ".",
        )
    return values


def _scatter(rows: _Chosen, array: _Array, file: BinaryIO, offset: int) -> None:
    """Write one column into `file` from `offset` on, each row at its place."""
    most = max(1, ROWS_BYTES // array.row_bytes)  # a short text takes the space of the longest
    for batch, positions in rows.batches([array.column]):
        for start in range(0, batch.num_rows, most):
            _write_rows(batch.slice(start, most), positions[start : start + most], array, file, offset)


def _write_rows(batch: pa.Table, positions: np.ndarray, array: _Array, file: BinaryIO, offset: int) -> None:
    order = np.argsort(positions)
    values, places = np.ascontiguousarray(_values(batch, array)[order]), positions[order]
    breaks = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    data = values.reshape(-1).view(np.uint8).data
    for start, end in pairwise(breaks):
        file.seek(offset + int(places[start]) * array.row_bytes)
        file.write(data[start * array.row_bytes : end * array.row_bytes])


def _values(batch: pa.Table, array: _Array) -> np.ndarray:
    field = batch.schema.field(array.column)
    if is_vector(field):
        return vectors_of(batch, array.column)
    column = _filled(batch.column(array.column), array.column)
    if not pa.types.is_string(field.type):
        return column.to_numpy()
    if array.dtype.kind == "U":
        return np.array(column.to_pylist(), array.dtype)
    width = array.shape[1] if len(array.shape) > 1 else array.dtype.itemsize
    return np.array([text.encode() for text in column.to_pylist()], f"S{width}")


def _write_npy(rows: _Chosen, array: _Array, file: Path) -> None:
    if rows.count:
        np.lib.format.open_memmap(file, mode="w+", dtype=array.dtype, shape=array.shape)  # header and space
    else:
        np.save(file, np.empty(array.shape, array.dtype))
    # Written as a file, because writes through the map would count as memory of this process.
    with file.open("r+b") as opened:
        _scatter(rows, array, opened, file.stat().st_size - rows.count * array.row_bytes)


def _write_npy_folder(rows: _Chosen, arrays: Sequence[_Array], made: Path) -> None:
    made.mkdir()
    for array in arrays:
        _write_npy(rows, array, made / f"{escaped_name(array.column)}.npy")


def _write_npz(rows: _Chosen, arrays: Sequence[_Array], made: Path) -> None:
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for array in arrays:
            # A zip member is written from front to back, so the column is put in order in another file first.
            column = made.with_name("column.npy")
            _write_npy(rows, array, column)
            member = zipfile.ZipInfo(f"{array.column}.npy")
            with column.open("rb") as source, archive.open(member, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 2**20)
            column.unlink()


def _write_safetensors(rows: _Chosen, arrays: Sequence[_Array], made: Path) -> None:
    header: dict[str, Any] = {}
    offsets: dict[str, int] = {}
    end = 0
    for array in sorted(arrays, key=lambda array: -array.dtype.itemsize):  # so that each one is aligned
        offsets[array.column] = end
        end += rows.count * array.row_bytes
        header[array.column] = {
            "dtype": _SAFETENSORS[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offsets[array.column], end],
        }
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with made.open("wb") as file:
        file.truncate(8 + len(text) + end)
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            _scatter(rows, array, file, 8 + len(text) + offsets[array.column])


def _write_hdf5(rows: _Chosen, arrays: Sequence[_Array], made: Path) -> None:
    h5py = import_optional("h5py")
    places: dict[str, int] = {}
    with h5py.File(made, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.CONTIGUOUS)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for array in arrays:
            dtype = h5py.string_dtype("utf-8", array.dtype.itemsize) if array.dtype.kind == "S" else array.dtype
            dataset = h5py.h5d.create(
                file.id,
                escaped_name(array.column).encode(),
                h5py.h5t.py_create(dtype, logical=True),
                h5py.h5s.create_simple(array.shape),
                properties,
            )
            places[array.column] = dataset.get_offset() if rows.count else 0
    # The space is allocated, so rows are written to their places as in the other formats.
    with made.open("r+b") as opened:
        for array in arrays:
            _scatter(rows, array, opened, places[array.column])


_WRITERS: Mapping[str, Callable[[_Chosen, Sequence[_Array], Path], None]] = {
    "hdf5": _write_hdf5,
    "safetensors": _write_safetensors,
    "npz": _write_npz,
    "npy": _write_npy_folder,
}

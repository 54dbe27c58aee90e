"""The columns of a run, derived from the fields of Record and from the run's spec."""

from __future__ import annotations

import dataclasses
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from midsight.errors import Option, RunError, SampleError
from midsight.records import ONLY_WITH, PROCESSOR_POOLED_PIXELS, VISION_ONLY, Double, Record
from midsight.taps.tap import POSITIONS

StoreDtype = Literal["float32", "float16"]
"""Type of the stored vectors' elements."""

EXTRA_TYPES: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "json": pa.string(),
}
"""Arrow type by the type name that a spec gives an extra column; `json` is JSON text."""

VECTOR_TYPES: Mapping[StoreDtype, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16()}
"""Arrow type of a vector's elements by store dtype."""


@dataclass(frozen=True)
class RunColumns:
    """What decides the columns of a run, together with the fields of Record."""

    vectors: Mapping[str, int]
    """Width by vector column, in stored order."""
    extras: Mapping[str, str]
    """Type by extra input column, in stored order."""
    stored_as: Mapping[str, str]
    """The column that stores each extra input column."""
    answers: bool
    """Whether the run has the answer columns."""
    store_dtype: StoreDtype
    """Type of the stored vectors' elements."""
    imported: bool = False
    """Whether the rows come from elsewhere, so that values which midsight always has may be missing."""
    risk: bool = False
    """Whether a probe gave each sample a risk."""

    def have(self, needs: Sequence[str] | None) -> bool:
        """Whether the run has one of the things that a column needs; None for a column of every run."""
        return needs is None or any(getattr(self, name) for name in needs)


_HINTS = get_type_hints(Record)
_SCALAR_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float32(), Double: pa.float64()}
_COLUMN_FIELDS = tuple(field for field in dataclasses.fields(Record) if field.name not in ("extras", "vectors"))
_OWN_NAMES = {
    *(field.name for field in _COLUMN_FIELDS),
    VISION_ONLY,
    PROCESSOR_POOLED_PIXELS,
    *(f"{position}_representation" for position in POSITIONS),
}


def extra_columns(names: Iterable[str]) -> dict[str, str]:
    """Input column -> the column that stores it: the same name, or with `input.` in front.

    The prefix goes to names that midsight uses itself, also if a dot and more text follow (`answer`,
    `query_token_representation.layer_0`) and also with the prefix (`input.answer`). Of names that are equal,
    the first one stays as it is. Names count as equal if they only differ by case or by how Unicode composes
    their letters, because DuckDB, Spark and some file systems take such names for one. An empty name becomes
    `input.`, and a zero byte the sign \ufffd, because some tools lose them.
    """
    columns = {name: _own_prefixed(name.replace("\0", "\ufffd")) for name in names}
    taken: set[str] = set()
    repeats: list[str] = []
    for name, column in columns.items():
        if folded(column) in taken:
            repeats.append(name)
        taken.add(folded(column))
    for name in repeats:
        while folded(columns[name]) in taken:
            columns[name] = f"input.{columns[name]}"
        taken.add(folded(columns[name]))
    return columns


def renamed_columns(stored_as: Mapping[str, str]) -> dict[str, str]:
    """Those of the columns in `stored_as` (the column that stores each input column) that do not keep their name."""
    return {name: column for name, column in stored_as.items() if column != name}


def folded(name: str) -> str:
    """A text that is equal for names that other tools may take for one.

    >>> folded("GRÖSSE") == folded("Gro\u0308ße")
    True
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _own_prefixed(name: str) -> str:
    bare = folded(name)
    while bare.startswith("input."):
        bare = bare.removeprefix("input.")
    return name if bare and bare.partition(".")[0] not in _OWN_NAMES else f"input.{name}"


def run_schema(columns: RunColumns) -> pa.Schema:
    """Every column of a run in stored order: fields of Record, input columns after the reference answers, vectors."""
    arrow_fields: list[pa.Field] = []
    for field in dataclasses.fields(Record):
        if field.name == "extras":
            arrow_fields.extend(
                pa.field(columns.stored_as[name], EXTRA_TYPES[type_]) for name, type_ in columns.extras.items()
            )
        elif field in _COLUMN_FIELDS and columns.have(field.metadata.get(ONLY_WITH)):
            unknown = columns.imported and field.metadata.get("unknown_if_imported", False)
            arrow_fields.append(_arrow_field(field.name, _HINTS[field.name], unknown=unknown))
    element = VECTOR_TYPES[columns.store_dtype]
    arrow_fields.extend(
        pa.field(name, pa.list_(element, width), nullable=False) for name, width in columns.vectors.items()
    )
    return pa.schema(arrow_fields)


def is_vector(field: pa.Field) -> bool:
    """Whether a column of a run holds vectors."""
    return pa.types.is_fixed_size_list(field.type)


_CHANGED_BY_ARROW = {("int64", float), ("float64", bool)}
"""Column types with Python types that pyarrow silently converts: 0.5 becomes 0, true becomes 1."""


def records_to_table(records: Sequence[Record], columns: RunColumns) -> pa.Table:
    """The rows of `records` with the columns of the run.

    Raises SampleError for an input column that the run does not have, and for a value that its column
    cannot hold: a wrong type, or a number that is not finite or too large for the store dtype. Raises
    RunError for vectors that are not those of the run.
    """
    for record in records:
        _require_columns(record, columns)
    schema = run_schema(columns)
    values = {field.name: [getattr(record, field.name) for record in records] for field in _COLUMN_FIELDS}
    for name, column in columns.stored_as.items():
        type_ = columns.extras[name]
        values[column] = [_extra_value(record, name, type_) for record in records]
    arrays = [
        _vectors(records, field) if is_vector(field) else _scalars(records, values[field.name], field)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _arrow_field(name: str, hint: Any, *, unknown: bool) -> pa.Field:
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    (kind,) = (member for member in members if member is not NoneType)
    return pa.field(name, _arrow_type(kind), nullable=unknown or NoneType in members)


def _arrow_type(kind: Any) -> pa.DataType:
    if get_origin(kind) is Literal:
        return _SCALAR_TYPES[type(get_args(kind)[0])]
    if get_origin(kind) is tuple:
        return pa.list_(_SCALAR_TYPES[get_args(kind)[0]])
    return _SCALAR_TYPES[kind]


def _require_columns(record: Record, columns: RunColumns) -> None:
    for name in record.extras:
        if name not in columns.extras:
            raise SampleError(
                f"The sample {record.sample_id!r} has the input column {name!r}, which this run does not have; "
                "extract the changed dataset into another ",
                Option("out"),
                ".",
            )
    shapes = {name: vector.shape for name, vector in record.vectors.items()}
    run_shapes = {name: (width,) for name, width in columns.vectors.items()}
    if shapes != run_shapes and not (columns.imported and shapes.items() <= run_shapes.items()):
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"
        wanted = ", ".join(f"{name} [{width}]" for name, width in columns.vectors.items()) or "none"
        raise RunError(f"The vectors of sample {record.sample_id!r} are {given}; this run stores {wanted}.")


def _extra_value(record: Record, name: str, type_: str) -> Any:
    value = record.extras.get(name)
    if (type_, type(value)) in _CHANGED_BY_ARROW:
        raise SampleError(
            f"The {name} of sample {record.sample_id!r} does not fit its column of type {type_}: it is {value}."
        )
    if type_ != "json" or value is None:
        return value
    try:
        return json.dumps(_without_nan(value), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise SampleError(
            f"The input column {name!r} of sample {record.sample_id!r} cannot be written as JSON: {error}."
        ) from error


def _without_nan(value: Any) -> Any:
    """The value with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(records: Sequence[Record], values: list[Any], field: pa.Field) -> pa.Array:
    try:
        array = pa.array(values, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if len(records) > 1:
            for record, value in zip(records, values, strict=True):
                _scalars([record], [value], field)
        raise SampleError(
            f"The {field.name} of sample {records[0].sample_id!r} does not fit its column of type {field.type}: {error}"
        ) from error
    if array.null_count and not field.nullable:
        raise SampleError(f"The {field.name} of sample {records[values.index(None)].sample_id!r} is missing.")
    return array


def _vectors(records: Sequence[Record], field: pa.Field) -> pa.Array:
    width, element = field.type.list_size, field.type.value_type
    stored = np.empty((len(records), width), element.to_pandas_dtype())
    for row, record in zip(stored, records, strict=True):
        vector = record.vectors.get(field.name)
        if vector is None:
            row[:] = np.nan
            continue
        with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused below
            row[:] = vector
        if not np.isfinite(vector).all():
            raise SampleError(f"The {field.name} of sample {record.sample_id!r} holds values that are not finite.")
        if not np.isfinite(row).all():
            raise SampleError(
                f"The {field.name} of sample {record.sample_id!r} reaches {np.abs(vector).max():.6g}, which "
                f"{stored.dtype} cannot hold; use ",
                Option("store_dtype", "float32"),
                ".",
            )
    return pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1), element), width)

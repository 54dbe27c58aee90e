"""Columns of a run as Arrow tables and as the data frames of other libraries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from midsight.store.commits import Commit
from midsight.store.optional import import_optional

if TYPE_CHECKING:
    import pandas as pd

LONGEST_COLUMN = 2**31 - 1
"""Bytes of a column of texts or lists from which on its offsets need 64 bits."""


def ordered_table(schema: pa.Schema, batches: Iterable[pa.Table], order: np.ndarray) -> pa.Table:
    """The rows of `batches` with the columns of `schema`, which has no vectors, in the order of the indices.

    Columns of texts or lists larger than 2 GiB become `large_string` and `large_list`.
    """
    table = pa.concat_tables([schema.empty_table(), *batches])
    for index, field in enumerate(schema):
        if table.column(index).nbytes > LONGEST_COLUMN:
            wide = field.with_type(_with_large_offsets(field.type))
            table = table.set_column(index, wide, table.column(index).cast(wide.type))
    return table.take(order)


def vector_array(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """Vectors [rows, width] as an Arrow array, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def pandas_frame(names: Sequence[str], table: pa.Table, vectors: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The columns `names`, those of `vectors` with cells that are views of one array, the others from `table`.

    Whole numbers and truth values that may be missing have pandas' nullable types.
    """
    pandas = import_optional("pandas")
    nullable = {pa.int64(): pandas.Int64Dtype(), pa.bool_(): pandas.BooleanDtype()}

    def series(name: str) -> pd.Series:
        if name in vectors:
            return pandas.Series(list(vectors[name]), dtype=object)
        mapper = nullable.get if table.field(name).nullable else None
        return table.column(name).to_pandas(types_mapper=mapper)

    return pandas.DataFrame({name: series(name) for name in names}, copy=False)


def dataset_of(table: pa.Table, run_id: str, commits: Sequence[Commit]) -> Any:
    """`table` as a `datasets.Dataset`; its fingerprint says which columns of which commits it holds.

    Without a fingerprint, datasets would copy the whole table to hash it.
    """
    datasets = import_optional("datasets")
    held = [run_id, [[commit.name, commit.part.sha256] for commit in commits if commit.part], table.schema.names]
    fingerprint = hashlib.sha256(json.dumps(held).encode()).hexdigest()[:32]
    return datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint=fingerprint)


def _with_large_offsets(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_string(type_):
        return pa.large_string()
    return pa.large_list(_with_large_offsets(type_.value_type)) if pa.types.is_list(type_) else type_

"""Numbers of Arrow columns as numpy arrays; pyarrow's own `to_numpy` imports pandas, which takes half a second."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def numbers_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The values of a column of integers or floats: of an array without a copy, and read-only."""
    if isinstance(column, pa.ChunkedArray):
        empty = np.empty(0, column.type.to_pandas_dtype())
        return np.concatenate([empty, *(numbers_of(chunk) for chunk in column.chunks)])
    if column.null_count or not len(column):
        return column.to_numpy(zero_copy_only=False)
    values = np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype())
    return values[column.offset : column.offset + len(column)]

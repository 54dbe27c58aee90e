"""Vector columns as numpy arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from midsight.buckets.path import Place
from midsight.errors import MidsightError, Option
from midsight.store.numbers import numbers_of
from midsight.store.spec import RunSpec
from midsight.taps.shown import layers_held, list_layers
from midsight.taps.tap import POSITIONS, Position, Tap


class VectorBatch(NamedTuple):
    """Some rows of one vector column."""

    sample_ids: list[str]
    """The ids of the rows."""
    input_index: np.ndarray
    """Their rows in the dataset, int64 [rows]."""
    vectors: np.ndarray
    """Their vectors, float32 [rows, width]."""


def vectors_of(batch: pa.Table, column: str) -> np.ndarray:
    """One vector column of `batch` as it is stored, float32 or float16 [rows, width]."""
    width = batch.schema.field(column).type.list_size
    return np.concatenate([numbers_of(chunk.flatten()).reshape(-1, width) for chunk in batch.column(column).chunks])


def vector_batch(batch: pa.Table, column: str) -> VectorBatch:
    """The rows of `batch`, which has `sample_id`, `input_index` and the vector column."""
    return VectorBatch(
        batch.column("sample_id").to_pylist(),
        numbers_of(batch.column("input_index")),
        vectors_of(batch, column).astype(np.float32, copy=False),
    )


def array_for(shape: tuple[int, ...], stored: np.dtype, out: np.ndarray | None) -> np.ndarray:
    """An array for vectors of `shape` that are stored as `stored`: `out`, or a new one of float32.

    Raises MidsightError if `out` has another shape, cannot hold every stored number, or cannot be written to.
    """
    if out is None:
        return np.empty(shape, np.float32)
    fits = isinstance(out, np.ndarray) and out.shape == shape
    if not fits or out.dtype.kind != "f" or out.itemsize < stored.itemsize:
        given = f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else f"a {type(out).__name__}"
        raise MidsightError(
            Option("out"), f" is {given}; give a numpy array of {stored} {list(shape)}, or of a wider float type."
        )
    if not out.flags.writeable:
        raise MidsightError(Option("out"), " cannot be written to; open a memory map with the mode r+ or w+.")
    return out


def vector_column(path: Place, spec: RunSpec, name: str, layer: Any, residual: bool) -> str:
    """The vector column that the arguments of a reader of the run folder `path` mean; raises MidsightError."""
    column = "" if residual else name
    if layer is not None:
        number = _layer_number(layer, spec.model.layers)
        positions: dict[str, Position] = {f"{position}_representation": position for position in POSITIONS}
        stage = "residual" if residual else "layer"
        column = str(Tap(positions[name], number, stage)) if name in positions and number >= 0 else ""
    layers = layers_held(name, [*spec.vectors]) if layer is None else []
    if layers:
        raise MidsightError(
            f"{path} has {name} at the {list_layers(layers)}; choose one with ",
            Option("layer", layers[-1]),
            ".",
        )
    if column not in spec.vectors:
        asked = f"{name!r}" + ("" if layer is None else f" at layer {layer}") + (" (residual)" if residual else "")
        raise MidsightError(f"{path} does not hold the vectors {asked}; it holds {', '.join(spec.vectors)}.")
    return column


def layer_columns(path: Place, taps: Iterable[Tap], position: Position) -> list[str]:
    """The columns of one position of the run folder `path`, by layer, without the residual; raises MidsightError."""
    taps = [tap for tap in taps if tap.stage == "layer"]
    found = sorted((tap.layer, str(tap)) for tap in taps if tap.position == position)
    if not found:
        held = ", ".join(dict.fromkeys(tap.position for tap in taps)) or "none"
        raise MidsightError(
            f"{path} does not hold vectors of the position {position!r}; the positions that it holds: {held}."
        )
    return [column for _, column in found]


def _layer_number(layer: Any, layers: int) -> int:
    """`layer` counted from the first of `layers`; raises MidsightError if it is not one whole number."""
    try:
        if isinstance(layer, bool | np.bool_):
            raise TypeError
        number = operator.index(layer)
    except TypeError:
        raise MidsightError(
            Option("layer", layer),
            " is not a whole number; give one layer, like 16, or use run.matrices(position) for all stored layers.",
        ) from None
    return number + layers if number < 0 else number


SAME = 1e-5
"""Relative distance up to which vectors count as equal: batches of other shapes round float32 differently."""


def same_as(vectors: np.ndarray, point: np.ndarray) -> bool:
    """Whether all vectors [n, width] equal `point` [width] up to rounding; values that are not finite never do."""
    with np.errstate(invalid="ignore"):
        distances = np.linalg.norm(vectors.astype(np.float64) - point, axis=1)
    return bool((distances <= SAME * np.linalg.norm(point.astype(np.float64))).all())

"""The map: a vector column in its two main directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from midsight.errors import MidsightError
from midsight.probes.finding import Finding
from midsight.probes.pca import principal_plane
from midsight.probes.study import chosen_columns
from midsight.probes.write import default_column
from midsight.reports.page.content import Map, Vectors
from midsight.store.reader import Run

EQUAL = 1e-4
"""Distance in the map, in shares of its width, below which two points are the same vector."""
DIGITS = 6


def column_of_map(run: Run, asked: str | None, vectors: Sequence[Vectors], finding: Finding | None) -> str | None:
    """The column that `asked` names; else the finding's, else the last query token that varies, else any that does.

    None if no column varies. Raises MidsightError if the run does not have the column.
    """
    if asked is not None:
        return chosen_columns(run, [asked])[-1]
    varied = [one.column for one in vectors if not one.constant]
    if finding is not None and default_column(finding) in varied:
        return default_column(finding)
    return next((name for name in reversed(varied) if name.startswith("query_token")), varied[-1] if varied else None)


def map_of(run: Run, column: str, input_index: np.ndarray, image_ids: Sequence[str]) -> Map:
    """The map of a column.

    Args:
        run: The run.
        column: A vector column.
        input_index: Rows in the dataset of the shown samples, ascending, int64 [n].
        image_ids: Their images.

    Returns:
        Coordinates of the shown samples, on directions that follow from all samples.

    Raises:
        MidsightError: All vectors are equal, or there are fewer than two.
    """
    plane = principal_plane(lambda: (batch.vectors for batch in run.vector_batches(column)), column)
    points = np.full((len(input_index), 2), np.nan)
    for batch in run.vector_batches(column):
        places = np.searchsorted(input_index, batch.input_index)
        shown = input_index[np.minimum(places, len(input_index) - 1)] == batch.input_index
        points[places[shown]] = plane.coordinates(batch.vectors[shown])
    x, y = (tuple(None if np.isnan(value) else round(float(value), DIGITS) for value in axis) for axis in points.T)
    return Map(
        column=column,
        x=x,
        y=y,
        explained=(float(plane.shares[0]), float(plane.shares[1])),
        images=len({*image_ids}),
        image_only=_is_image_only(points, image_ids),
    )


def map_or_note(run: Run, column: str | None, asked: str | None, shown: pa.Table) -> tuple[Map | None, tuple[str, ...]]:
    """The map of the shown samples, or why there is none; a column that was `asked` for and has none is an error."""
    if column is None or not shown.num_rows:
        return None, ()
    input_index = np.array(shown["input_index"].to_pylist(), np.int64)
    try:
        return map_of(run, column, input_index, shown["image_id"].to_pylist()), ()
    except MidsightError as error:
        if asked is not None:
            raise
        return None, (f"There is no map: {error}",)


def _is_image_only(points: np.ndarray, image_ids: Sequence[str]) -> bool | None:
    """Whether points of one image are the same, up to rounding; None if no image has several points."""
    there = np.isfinite(points[:, 0])
    codes = np.unique(np.array(image_ids)[there], return_inverse=True)[1]
    counts = np.bincount(codes)
    if not len(counts) or counts.max() < 2:
        return None
    means = np.stack([np.bincount(codes, points[there, axis]) / counts for axis in (0, 1)], axis=1)
    return bool(np.abs(points[there] - means[codes]).max() <= EQUAL * np.ptp(points[there], axis=0).max())

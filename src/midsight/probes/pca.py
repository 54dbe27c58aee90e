"""Two coordinates for each vector of a column, for maps: the principal plane of the standardised features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from midsight.errors import MidsightError

_DEAD = 1e-6
"""Standard deviation of a feature, relative to its mean, below which it is left out."""


@dataclass(frozen=True)
class Plane:
    """The two directions in which standardised vectors vary most."""

    mean: np.ndarray
    """Mean of the vectors, float64 [width]."""
    axes: np.ndarray
    """float64 [2, width]: directions, divided by the features' standard deviations."""
    shares: tuple[float, float]
    """Share of the standardised features' variance along each."""
    rows: int
    """Vectors that the plane was computed from."""

    def coordinates(self, vectors: np.ndarray) -> np.ndarray:
        """Coordinates of vectors.

        Args:
            vectors: float [n, width].

        Returns:
            float32 [n, 2]; NaN for a vector that is not finite.
        """
        with np.errstate(invalid="ignore"):
            return ((vectors.astype(np.float64) - self.mean) @ self.axes.T).astype(np.float32)


def principal_plane(batches: Callable[[], Iterable[np.ndarray]], column: str) -> Plane:
    """The principal plane of a column's vectors, read twice and never held together.

    Features are divided by their standard deviations, as for the probes: a few dimensions of a decoder are a thousand
    times larger than the others, and would be the whole picture. Each direction's largest element is positive, so that
    the same vectors always give the same map.

    Args:
        batches: Makes an iterator over the vectors, each batch float [n, width]. Rows that are not finite are left out.
        column: The column's name, for messages.

    Returns:
        The plane.

    Raises:
        MidsightError: There are fewer than two vectors, or all are equal.
    """
    mean, deviation, rows = _moments(batches())
    if rows < 2:
        raise MidsightError(f"The column {column} has fewer than two vectors, so there is no map of it.")
    alive = deviation > _DEAD * (_DEAD + np.abs(mean))
    if not alive.any():
        raise MidsightError(f"In the column {column} all rows are equal, so there is no map of it; choose another.")
    inverse = np.where(alive, 1 / np.where(alive, deviation, 1), 0)
    gram = np.zeros((len(mean), len(mean)))
    for batch in batches():
        scaled = (_finite(batch) - mean) * inverse
        gram += scaled.T @ scaled
    wanted = min(2, len(mean))
    values, vectors = eigh(gram / rows, subset_by_index=[len(mean) - wanted, len(mean) - 1])
    axes, shares = np.zeros((2, len(mean))), np.zeros(2)
    axes[:wanted], shares[:wanted] = vectors.T[::-1], np.maximum(values[::-1], 0) / alive.sum()
    largest = axes[np.arange(2), np.abs(axes).argmax(axis=1)]
    axes *= np.where(largest < 0, -1, 1)[:, None]
    return Plane(mean, axes * inverse, (float(shares[0]), float(shares[1])), rows)


def _moments(batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard deviation, float64 [width], and the number of rows; merged from batch to batch (Chan 1979)."""
    mean, squares, rows = np.zeros(0), np.zeros(0), 0
    for batch in batches:
        values = _finite(batch)
        if not len(values):
            continue
        here = values.mean(axis=0)
        inside = np.square(values - here).sum(axis=0)
        if rows == 0:
            mean, squares, rows = here, inside, len(values)
            continue
        total, apart = rows + len(values), here - mean
        squares = squares + inside + apart**2 * rows * len(values) / total
        mean = mean + apart * len(values) / total
        rows = total
    return mean, np.sqrt(squares / max(rows, 1)), rows


def _finite(batch: np.ndarray) -> np.ndarray:
    """The rows without NaN and infinity, float64."""
    return batch[np.isfinite(batch).all(axis=1)].astype(np.float64)

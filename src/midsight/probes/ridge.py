"""Ridge regression on 0/1 labels from Gram matrices: all training sets, penalties and permuted labels of a column.

On 0/1 labels the ridge is linear discriminant analysis with a shrunken covariance. Its ranking of samples
equals that of logistic regression to the third digit, at a fortieth of the cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

PENALTIES = tuple(float(penalty) for penalty in np.geomspace(1e-2, 1e3, 5))
"""Penalties per sample, on features with standard deviation 1."""

_DEAD = 1e-5
"""Standard deviation, after scaling, below which a feature is left out of a training set."""
_BLOCK = 4096
"""Rows at a time."""


@dataclass(frozen=True)
class Weights:
    """Linear functions of the scaled features, zero at the mean of their training set."""

    coefficients: np.ndarray
    """float32 [width, labels]."""
    intercepts: np.ndarray
    """float32 [labels]."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Scores of a fold that the weights were not trained on, divided by their standard deviation.

        So folds with other penalties, which shrink scores, can be pooled. The label's mean is left out: it is lower
        where the held-out fold has more positives, and would pull a pooled AUROC below one half. Scores that are equal
        but for rounding, as in a fold of one image, have no spread to divide by and stay as they are.

        Args:
            features: float32 [rows, width], scaled.

        Returns:
            float32 [labels, rows].
        """
        raw = self.coefficients.T @ features.T + self.intercepts[:, None]
        spread = raw.std(axis=1, keepdims=True)
        return raw / np.where(spread > _DEAD * np.abs(raw).max(axis=1, keepdims=True), spread, 1)


class FoldedFeatures:
    """One column's features, scaled in place, with rows sorted by fold and the moments of each fold.

    Shift and scale use no labels. They keep float32 exact although a few dimensions of a decoder are in the
    thousands; without them the ridge is destroyed.
    """

    def __init__(self, features: np.ndarray, bounds: Sequence[int], labels: np.ndarray) -> None:
        """Scales `features` in place.

        Args:
            features: float32 [n, width], rows sorted by fold.
            bounds: First row of each fold, and n at the end.
            labels: float32 [m, n]: label vectors, in the same order.
        """
        self.features = features
        self.bounds = [*bounds]
        self.labels = labels
        self.shift, self.scale = scale_in_place(features)
        self._sizes = np.diff(self.bounds)
        folds = range(len(self._sizes))
        self._sums = np.stack([self.rows(fold).sum(axis=0, dtype=np.float64) for fold in folds])
        self._label_sums = np.stack([self.labels_of(fold).sum(axis=1, dtype=np.float64) for fold in folds])
        self._products = np.stack([self.rows(fold).T @ self.labels_of(fold).T for fold in folds])
        self._grams: dict[int, np.ndarray] = {}

    def rows(self, fold: int) -> np.ndarray:
        """The scaled features of a fold, float32 [rows, width]."""
        return self.features[self.bounds[fold] : self.bounds[fold + 1]]

    def labels_of(self, fold: int) -> np.ndarray:
        """The labels of a fold, float32 [m, rows]."""
        return self.labels[:, self.bounds[fold] : self.bounds[fold + 1]]

    def solutions(self, train: Collection[int], penalties: Sequence[float]) -> Iterator[Weights]:
        """The ridge of every label vector on the folds in `train`, for one penalty after the other."""
        folds = sorted(train)
        n = int(self._sizes[folds].sum())
        mean = self._sums[folds].sum(axis=0) / n
        label_mean = self._label_sums[folds].sum(axis=0) / n
        target = self._products[folds].sum(axis=0, dtype=np.float64) - np.outer(
            self._sums[folds].sum(axis=0), label_mean
        )
        solve = self._solve_primal if n > self.features.shape[1] else self._solve_dual
        for coefficients in solve(folds, n, mean, label_mean, target, penalties):
            yield Weights(coefficients, (-mean @ coefficients).astype(np.float32))

    def _solve_primal(
        self,
        folds: list[int],
        n: int,
        mean: np.ndarray,
        _: np.ndarray,
        target: np.ndarray,
        penalties: Sequence[float],
    ) -> Iterator[np.ndarray]:
        gram = np.zeros((len(mean), len(mean)), np.float32)
        for fold in folds:
            gram += self._gram(fold)
        gram -= n * np.outer(mean, mean).astype(np.float32)
        inverse = _inverse_deviation(np.diag(gram) / n)
        gram *= inverse[:, None]
        gram *= inverse
        scaled = (target * inverse[:, None]).astype(np.float32)
        diagonal = np.arange(len(mean))
        base = gram[diagonal, diagonal].copy()
        for penalty in penalties:
            gram[diagonal, diagonal] = base + np.float32(penalty * n)
            factor = cho_factor(gram.T, lower=True, check_finite=False)
            yield cho_solve(factor, scaled, check_finite=False) * inverse[:, None]

    def _solve_dual(
        self,
        folds: list[int],
        n: int,
        mean: np.ndarray,
        label_mean: np.ndarray,
        _: np.ndarray,
        penalties: Sequence[float],
    ) -> Iterator[np.ndarray]:
        """The same weights through the samples' inner products, which is cheaper for fewer samples than features."""
        centred = np.concatenate([self.rows(fold) for fold in folds]) - mean.astype(np.float32)
        inverse = _inverse_deviation(np.einsum("ij,ij->j", centred, centred, dtype=np.float64) / n)
        centred *= inverse
        labels = np.concatenate([self.labels_of(fold) for fold in folds], axis=1).T
        labels = (labels - label_mean).astype(np.float32)
        kernel = centred @ centred.T
        diagonal = np.arange(n)
        base = kernel[diagonal, diagonal].copy()
        for penalty in penalties:
            kernel[diagonal, diagonal] = base + np.float32(penalty * n)
            factor = cho_factor(kernel.T, lower=True, check_finite=False)
            yield centred.T @ cho_solve(factor, labels, check_finite=False) * inverse[:, None]

    def _gram(self, fold: int) -> np.ndarray:
        if fold not in self._grams:
            rows = self.rows(fold)
            gram = np.zeros((rows.shape[1], rows.shape[1]), np.float32)
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                gram += block.T @ block
            self._grams[fold] = gram
        return self._grams[fold]


def _inverse_deviation(variance: np.ndarray) -> np.ndarray:
    deviation = np.sqrt(np.maximum(variance, 0))
    alive = deviation > _DEAD
    return np.where(alive, 1 / np.where(alive, deviation, 1), 0).astype(np.float32)


def scale_in_place(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the mean and multiply by the inverse standard deviation of all rows; returns both, float64."""
    shift = features.mean(axis=0, dtype=np.float64)
    squares = np.zeros(features.shape[1])
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        block -= shift.astype(np.float32)
        squares += np.einsum("ij,ij->j", block, block, dtype=np.float64)
    deviation = np.sqrt(squares / max(len(features), 1))
    alive = deviation > 1e-6 * (1e-6 + np.abs(shift))
    scale = np.where(alive, 1 / np.where(alive, deviation, 1), 0)
    for start in range(0, len(features), _BLOCK):
        features[start : start + _BLOCK] *= scale.astype(np.float32)
    return shift.astype(np.float32).astype(np.float64), scale.astype(np.float32).astype(np.float64)

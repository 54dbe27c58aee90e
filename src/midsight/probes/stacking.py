"""Logistic regression on a few scores: calibration of a probe, and a probe together with the model's confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from midsight.probes.crossval import Design

_STEPS = 25
_SHRINKAGE = 1e-3
"""Penalty per sample on coefficients of features with standard deviation 1; it keeps separable data finite."""


def fit_logistic(features: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients [width] and intercept of a slightly shrunken logistic regression, by Newton's method."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.where(deviation > 1e-12, deviation, np.inf)
    design = np.column_stack([(features - mean) / deviation, np.ones(len(y))])
    penalty = np.diag([_SHRINKAGE * len(y)] * features.shape[1] + [1e-9])
    weights = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        probability = sigmoid(design @ weights)
        gradient = design.T @ (y - probability) - penalty @ weights
        curvature = (design * np.maximum(probability * (1 - probability), 1e-6)[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature, gradient)
        weights += step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    coefficients = weights[:-1] / deviation
    return coefficients, float(weights[-1] - mean @ coefficients)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-np.clip(logit, -500, 500)))


def stacked(design: Design, scores: Sequence[tuple[np.ndarray, np.ndarray]], features: np.ndarray) -> np.ndarray:
    """Probabilities of test rows from scores and features together.

    The regression of a split is trained on scores that its training rows got while they were held out, so that it
    meets scores of the same kind in the test fold.

    Args:
        design: Folds and splits.
        scores: For each probe its training scores [splits, n] and its test scores [n].
        features: float [n, width], like the model's confidence; width may be 0.

    Returns:
        Probabilities, NaN outside test folds. float64 [n].
    """
    out = np.full(design.bounds[-1], np.nan)
    for index, split in enumerate(design.splits):
        train = np.concatenate([np.arange(design.bounds[fold], design.bounds[fold + 1]) for fold in split.train])
        test = design.fold_slice(split.test)
        for training, _ in scores:  # a network has such scores for one training fold only
            train = train[np.isfinite(training[index, train])]
        inputs = np.column_stack([*(training[index, train] for training, _ in scores), features[train]])
        coefficients, intercept = fit_logistic(inputs.astype(np.float64), design.y[train])
        tested = np.column_stack([*(one[test] for _, one in scores), features[test]])
        out[test] = sigmoid(tested @ coefficients + intercept)
    return out

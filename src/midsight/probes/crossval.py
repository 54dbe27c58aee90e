"""Nested cross-validation of one column: the penalty is chosen in inner folds, for true and permuted labels alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from midsight.probes.folds import OBSERVED
from midsight.probes.metrics import many_aurocs
from midsight.probes.ridge import PENALTIES, FoldedFeatures, Weights

SCORE_DECIMALS = 5
"""Scores have standard deviation 1; rounding gives equal vectors equal scores, whatever the order of summation."""


@dataclass(frozen=True)
class Split:
    """A training set of folds, and the fold that it is tested on."""

    train: tuple[int, ...]
    """Folds to train on; each of them is held out once to choose the penalty."""
    test: int
    """The fold to test on."""


@dataclass(frozen=True)
class Design:
    """How the samples are divided, the same for every column. Arrays are sorted by fold."""

    rows: np.ndarray
    """Index of the sample among the labelled ones, int64 [n]."""
    bounds: tuple[int, ...]
    """First row of each fold, and n at the end."""
    splits: tuple[Split, ...]
    """For cross-validation one for each fold; for a held-out test one."""
    labels: np.ndarray
    """float32 [1 + permutations, n]; the first row is the labels as they are."""
    groups: np.ndarray
    """Number of the group, int64 [n]."""

    @cached_property
    def tested(self) -> np.ndarray:
        """Whether a row is in a test fold, bool [n]."""
        mask = np.zeros(self.bounds[-1], bool)
        for split in self.splits:
            mask[self.fold_slice(split.test)] = True
        return mask

    @property
    def y(self) -> np.ndarray:
        """The labels as they are, float32 [n]."""
        return self.labels[OBSERVED]

    def fold_slice(self, fold: int) -> slice:
        """The rows of a fold."""
        return slice(self.bounds[fold], self.bounds[fold + 1])


def cross_validation(folds: int) -> tuple[Split, ...]:
    """Each fold is tested by the others."""
    return tuple(Split(tuple(one for one in range(folds) if one != fold), fold) for fold in range(folds))


def held_out_test(folds: int) -> tuple[Split, ...]:
    """The first `folds` folds train, one more is tested."""
    return (Split(tuple(range(folds)), folds),)


@dataclass(frozen=True)
class ColumnFit:
    """What nested cross-validation says about one column."""

    scores: np.ndarray
    """Scores of test rows for the labels as they are; NaN elsewhere. float32 [n]."""
    training_scores: np.ndarray
    """For each split the scores that training rows got while they were held out; NaN elsewhere. float32 [splits, n]."""
    statistics: np.ndarray
    """AUROC of all test rows together, for every label vector. float64 [m]."""
    fold_aurocs: np.ndarray
    """AUROC of each test fold. float64 [splits, m]."""
    inner_aurocs: np.ndarray
    """Mean AUROC of the held-out training folds, at the best penalty. float64 [splits, m]."""
    penalty: float
    """The penalty with the best mean over all splits, for the labels as they are."""
    weights: Weights
    """Trained at that penalty on every fold that trains, for the labels as they are."""
    shift: np.ndarray
    """What was subtracted from the features first, float64 [width]."""
    scale: np.ndarray
    """What they were multiplied with then, float64 [width]."""


def fit_column(features: np.ndarray, design: Design, penalties: Sequence[float] = PENALTIES) -> ColumnFit:
    """Nested cross-validation of ridge probes.

    Every training set is factorised once for each penalty, and serves all label vectors and both folds of a pair.

    Args:
        features: float32 [n, width], rows as in the design; scaled in place.
        design: Folds, splits and labels.
        penalties: The penalties to choose from.

    Returns:
        Scores of rows that no probe was trained on, and the statistics of true and permuted labels.
    """
    folded = FoldedFeatures(features, design.bounds, design.labels)
    inner, held_scores = _inner(folded, design, penalties)
    outer = np.full(design.labels.shape, np.nan, np.float32)
    training = np.full((len(design.splits), design.bounds[-1]), np.nan, np.float32)
    fold_aurocs = np.empty((len(design.splits), len(design.labels)))
    means = _mean_over_folds(inner)
    chosen = means.argmax(axis=1)
    for index, split in enumerate(design.splits):
        rows = design.fold_slice(split.test)
        for number, weights in _solutions_at(folded, split.train, chosen[index], penalties):
            mine = chosen[index] == number
            outer[mine, rows] = Weights(weights.coefficients[:, mine], weights.intercepts[mine]).scores(
                folded.rows(split.test)
            )
        fold_aurocs[index] = many_aurocs(folded.labels_of(split.test), outer[:, rows])
        for fold in split.train:
            training[index, design.fold_slice(fold)] = held_scores[index, fold][chosen[index, OBSERVED]]
    best = int(means[:, :, OBSERVED].mean(axis=0).argmax())
    return ColumnFit(
        scores=outer[OBSERVED].round(SCORE_DECIMALS),
        training_scores=training,
        statistics=many_aurocs(design.labels[:, design.tested], outer[:, design.tested]),
        fold_aurocs=fold_aurocs,
        inner_aurocs=means.max(axis=1),
        penalty=penalties[best],
        weights=_final_weights(folded, design, penalties[best]),
        shift=folded.shift,
        scale=folded.scale,
    )


def _inner(
    folded: FoldedFeatures, design: Design, penalties: Sequence[float]
) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray]]:
    """AUROC of held-out training folds [splits, folds, penalties, m], NaN elsewhere; their scores by split and fold."""
    needs: dict[frozenset[int], list[tuple[int, int]]] = {}
    for index, split in enumerate(design.splits):
        for held in split.train:
            needs.setdefault(frozenset(split.train) - {held}, []).append((index, held))
    folds = len(design.bounds) - 1
    aurocs = np.full((len(design.splits), folds, len(penalties), len(design.labels)), np.nan)
    scores: dict[tuple[int, int], np.ndarray] = {}
    for train, evaluations in needs.items():
        for number, weights in enumerate(folded.solutions(train, penalties)):
            for index, held in evaluations:
                predicted = weights.scores(folded.rows(held))
                aurocs[index, held, number] = many_aurocs(folded.labels_of(held), predicted)
                kept = scores.setdefault((index, held), np.empty((len(penalties), predicted.shape[1]), np.float32))
                kept[number] = predicted[OBSERVED]
    return aurocs, scores


def _mean_over_folds(aurocs: np.ndarray) -> np.ndarray:
    """Mean over folds that are there, [splits, penalties, m]; 0.5 where no fold has both classes."""
    there = np.isfinite(aurocs)
    counts = there.sum(axis=1)
    return np.where(counts > 0, np.where(there, aurocs, 0).sum(axis=1) / np.maximum(counts, 1), 0.5)


def _solutions_at(
    folded: FoldedFeatures, train: tuple[int, ...], chosen: np.ndarray, penalties: Sequence[float]
) -> list[tuple[int, Weights]]:
    """The weights at those penalties that any label vector chose, with their numbers."""
    numbers = np.unique(chosen).tolist()
    return [*zip(numbers, folded.solutions(train, [penalties[number] for number in numbers]), strict=True)]


def _final_weights(folded: FoldedFeatures, design: Design, penalty: float) -> Weights:
    """The probe of all folds that train, scaled so that its scores of their samples have standard deviation 1."""
    train = sorted({fold for split in design.splits for fold in split.train})
    (weights,) = folded.solutions(train, [penalty])
    coefficients, intercept = weights.coefficients[:, :1], weights.intercepts[:1]
    raw = np.concatenate([folded.rows(fold) @ coefficients[:, 0] for fold in train])
    scale = max(float(raw.std()), float(np.finfo(np.float32).tiny))
    return Weights(coefficients / scale, intercept / scale)

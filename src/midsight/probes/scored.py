"""Scores of test rows, from probes and baselines alike, and the results that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from midsight.probes.baselines import Baseline
from midsight.probes.crossval import ColumnFit, Design, fit_column
from midsight.probes.finding import Pair, ScoreResult, StratumResult
from midsight.probes.folds import OBSERVED
from midsight.probes.metrics import (
    Interval,
    accuracy_at_base_rate,
    auroc,
    average_precision,
    brier,
    calibration_error,
    clustered_delong,
    difference_interval,
    many_aurocs,
    share_interval,
)
from midsight.probes.stacking import stacked
from midsight.taps.tap import Tap

CONFIDENCE_NAME = "confidence"
"""The baseline that combines the scalars of the first token's distribution."""
CROSS_VALIDATED = 1.35
"""Factor on the standard error of cross-validated AUROCs, because folds share training data (docs/probing.md)."""


@dataclass(frozen=True)
class Scored:
    """The scores of one probe or baseline. Arrays are sorted by fold."""

    name: str
    """Column, or name of the baseline."""
    method: str
    """As in ScoreResult."""
    when: str
    """As in ScoreResult."""
    scores: np.ndarray
    """For ranking test rows, float [n]; NaN elsewhere."""
    training_scores: np.ndarray | None
    """As in ColumnFit; None for a score without training."""
    raw: np.ndarray
    """Test scores of the same kind as `training_scores`."""
    statistics: np.ndarray | None
    """AUROC for every label vector; None if labels were not permuted."""
    penalty: float | None = None
    """As in ScoreResult."""
    image_only: bool = False
    """As in ScoreResult."""
    baseline: bool = False
    """Whether it is a baseline."""

    @property
    def trained(self) -> bool:
        """Whether scores come from training."""
        return self.method != "direct"


def scored_fit(name: str, fit: ColumnFit, when: str = "before the answer", *, image_only: bool = False) -> Scored:
    """A probe's scores."""
    return Scored(
        name, "ridge", when, fit.scores, fit.training_scores, fit.scores, fit.statistics, fit.penalty, image_only
    )


def scored_baseline(baseline: Baseline, design: Design) -> Scored:
    """A baseline's scores: features are probed, a single score gets the direction that it has in the training folds."""
    if baseline.values.ndim > 1:
        fit = fit_column(np.array(baseline.values, np.float32), design)
        return replace(scored_fit(baseline.name, fit, baseline.when), baseline=True)
    values = baseline.values.astype(np.float32)
    scores = np.full(len(values), np.nan, np.float32)
    for split in design.splits:
        train = np.concatenate([np.arange(design.bounds[fold], design.bounds[fold + 1]) for fold in split.train])
        sign = 1 if auroc(design.y[train], values[train]) >= 0.5 else -1
        scores[design.fold_slice(split.test)] = sign * values[design.fold_slice(split.test)]
    direct = many_aurocs(design.labels[:, design.tested], np.tile(values[design.tested], (len(design.labels), 1)))
    training = np.tile(values, (len(design.splits), 1))
    return Scored(baseline.name, "direct", baseline.when, scores, training, values, np.maximum(direct, 1 - direct),
                  baseline=True)  # fmt: skip


def scored_confidence(confidence: np.ndarray, design: Design) -> Scored:
    """The scalars of the first token's distribution, combined by logistic regression."""
    scores = stacked(design, [], confidence)
    return Scored(CONFIDENCE_NAME, "logistic", "before the answer", scores, None, scores, None, baseline=True)


def scored_choice(fits: Mapping[str, ColumnFit], design: Design) -> tuple[Scored, tuple[str, ...]]:
    """The column that inner folds choose in each split, and the names of the chosen.

    Permuted labels go through the same choice. Scores of different columns are compared by their ranks within a test
    fold.
    """
    names = [*fits]
    inner = np.stack([fits[name].inner_aurocs for name in names])
    choice = inner.argmax(axis=0)
    scores = np.full(design.bounds[-1], np.nan)
    raw = np.full(design.bounds[-1], np.nan)
    training = np.full((len(design.splits), design.bounds[-1]), np.nan)
    for index, split in enumerate(design.splits):
        chosen, rows = fits[names[choice[index, OBSERVED]]], design.fold_slice(split.test)
        raw[rows] = chosen.scores[rows]
        scores[rows] = _mean_ranks(chosen.scores[rows]) / (rows.stop - rows.start)
        training[index] = chosen.training_scores[index]
    folds = np.take_along_axis(np.stack([fits[name].fold_aurocs for name in names]), choice[None], axis=0)[0]
    there = np.isfinite(folds)
    statistics = np.where(there, folds, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    picked = tuple(names[one] for one in choice[:, OBSERVED])
    return Scored("chosen", "ridge", "before the answer", scores, training, raw, statistics), picked


class Evaluation:
    """The results of several scores on the same test rows."""

    def __init__(
        self,
        scored: Sequence[Scored],
        design: Design,
        strata: Mapping[str, Sequence[str]],
        confidence: np.ndarray | None,
        widening: float,
    ) -> None:
        """Compares `scored` with each other and with the model's confidence, float64 [n, width]."""
        self.scored = [*scored]
        self._design = design
        self._confidence = confidence
        self._widening = widening
        self._tested = design.tested
        self._y = design.y[self._tested]
        self._groups = design.groups[self._tested]
        self._strata = {name: np.array(values)[self._tested] for name, values in strata.items()}
        self._matrix = np.column_stack([one.scores[self._tested] for one in self.scored])
        self._estimates, self._covariance = clustered_delong(self._y, self._matrix, self._groups)
        columns = [one.statistics for one in self.scored if not one.baseline and one.statistics is not None
                   and one.name != "chosen"]  # fmt: skip
        self._best = np.max(columns, axis=0) if columns else None
        names = [one.name for one in self.scored]
        self._alone = names.index(CONFIDENCE_NAME) if CONFIDENCE_NAME in names else None

    def results(self) -> list[ScoreResult]:
        """One result for each score, in order."""
        return [self._result(index, one) for index, one in enumerate(self.scored)]

    def _result(self, index: int, one: Scored) -> ScoreResult:
        tap = Tap.parse_or_none(one.name)
        scores = self._matrix[:, index]
        probability = self.probability(one)
        value = share_interval(self._estimates[index], self._covariance[index, index], self._factor(one))
        minus, gain = self._minus_confidence(index), self._gain(one)
        return ScoreResult(
            column=one.name,
            layer=tap.layer if tap else None,
            position=tap.position if tap else None,
            method=one.method,
            when=one.when,
            image_only=one.image_only,
            auroc=value.value,
            auroc_interval=(value.low, value.high),
            p=_share_reaching(one.statistics, None if one.statistics is None else one.statistics[OBSERVED]),
            p_familywise=None if one.baseline or one.name == "chosen" or one.statistics is None
            else _share_reaching(self._best, one.statistics[OBSERVED]),
            chance=_chance(one.statistics),
            auprc=average_precision(self._y, scores),
            auprc_of_false=average_precision(1 - self._y, -scores),
            accuracy=accuracy_at_base_rate(self._y, scores),
            brier=None if probability is None else brier(self._y, probability),
            calibration_error=None if probability is None else calibration_error(self._y, probability),
            within_strata=self._within_strata(scores),
            minus_confidence=minus and minus.value,
            minus_confidence_interval=minus and (minus.low, minus.high),
            gain=gain and gain.value,
            gain_interval=gain and (gain.low, gain.high),
            penalty=one.penalty,
        )  # fmt: skip

    def strata_results(self) -> list[StratumResult]:
        """Results within each value of each stratum column."""
        found = []
        for name, values in self._strata.items():
            for value in sorted({*values.tolist()}):
                rows = values == value
                n, positives = int(rows.sum()), int(self._y[rows].sum())
                aurocs, intervals = self._within(rows) if 0 < positives < n else ({}, {})
                found.append(
                    StratumResult(
                        stratum=name, value=value, n=n, positives=positives, auroc=aurocs, auroc_interval=intervals
                    )
                )
        return found

    def _within(self, rows: np.ndarray) -> tuple[dict[str, float], dict[str, Pair]]:
        estimates, covariance = clustered_delong(self._y[rows], self._matrix[rows], self._groups[rows])
        intervals = [
            share_interval(estimates[index], covariance[index, index], self._factor(one))
            for index, one in enumerate(self.scored)
        ]
        names = [one.name if one.method in ("ridge", "direct") else f"{one.name} ({one.method})" for one in self.scored]
        return (
            {name: one.value for name, one in zip(names, intervals, strict=True)},
            {name: (one.low, one.high) for name, one in zip(names, intervals, strict=True)},
        )

    def _within_strata(self, scores: np.ndarray) -> dict[str, float]:
        """AUROC over pairs from the same stratum, by stratum column; left out if no stratum has both classes."""
        found = {}
        for name, values in self._strata.items():
            total = weight = 0.0
            for value in np.unique(values):
                rows = values == value
                pairs = float(self._y[rows].sum() * (1 - self._y[rows]).sum())
                if pairs:
                    total += pairs * auroc(self._y[rows], scores[rows])
                    weight += pairs
            if weight:
                found[name] = total / weight
        return found

    def _factor(self, one: Scored) -> float:
        return self._widening if one.trained else 1.0

    def probability(self, one: Scored) -> np.ndarray | None:
        """Calibrated probabilities of the tested rows, float64 [tested]; None for scores that cannot be calibrated."""
        if one.training_scores is None:
            return one.raw[self._tested] if one.name == CONFIDENCE_NAME else None
        none = np.empty((len(one.scores), 0))
        return stacked(self._design, [(one.training_scores, one.raw)], none)[self._tested]

    def _minus_confidence(self, index: int) -> Interval | None:
        if self._alone is None or index == self._alone:
            return None
        pair = np.array([index, self._alone])
        return difference_interval(self._estimates[pair], self._covariance[np.ix_(pair, pair)], self._widening)

    def _gain(self, one: Scored) -> Interval | None:
        if self._alone is None or self._confidence is None or one.training_scores is None or one.baseline:
            return None
        both = stacked(self._design, [(one.training_scores, one.raw)], self._confidence)[self._tested]
        matrix = np.column_stack([both, self._matrix[:, self._alone]])
        return difference_interval(*clustered_delong(self._y, matrix, self._groups), self._widening)


def surest_first(y: np.ndarray, certainty: np.ndarray, steps: int = 20) -> list[tuple[float, float]]:
    """Share answered and accuracy among them, if the surest are answered first."""
    order = np.argsort(-certainty, kind="stable")
    ends = np.unique(np.linspace(0, len(y), steps + 1).round().astype(int))
    return [(end / len(y), float(y[order[:end]].mean())) for _, end in pairwise(ends)]


def _mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks from the lowest, equal scores sharing theirs."""
    ordered = np.sort(scores)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2


def _share_reaching(statistics: np.ndarray | None, observed: float | None) -> float | None:
    """Share of label vectors, the true one included, whose statistic is at least as high; None without permutations."""
    if statistics is None or observed is None or len(statistics) < 2:
        return None
    return float((1 + (statistics[1:] >= observed - 1e-12).sum()) / len(statistics))


def _chance(statistics: np.ndarray | None) -> Pair | None:
    if statistics is None or len(statistics) < 2:
        return None
    low, high = np.nanquantile(statistics[1:], [0.025, 0.975])
    return float(low), float(high)

"""Experiments on made-up runs: what the probes' statistics say where the truth is known."""

from dataclasses import dataclass, replace

import numpy as np

from midsight.probes.crossval import ColumnFit, Design, fit_column, held_out_test
from midsight.probes.folds import OBSERVED, deal_folds, hold_out
from midsight.probes.metrics import auroc, clustered_delong, share_interval
from midsight.probes.scored import scored_choice
from support.planted import QUERY, columns_of, design_of, planted

SCORE = QUERY.format(1)


def fit_all(made, design: Design) -> dict[str, ColumnFit]:
    """Every column of a made-up run, probed."""
    return {name: fit_column(features, design) for name, features in columns_of(made, design).items()}


def p_value(statistics: np.ndarray, observed: float) -> float:
    """Share of label vectors, the true one included, that reach `observed`."""
    return (1 + (statistics[1:] >= observed).sum()) / len(statistics)


@dataclass(frozen=True)
class NullResult:
    """P-values on null runs."""

    family: np.ndarray
    """Family-wise p-value of the best column in each run [runs]."""
    chosen: np.ndarray
    """p-value of the column that inner folds choose, in each run [runs]."""
    aurocs: np.ndarray
    """AUROC of the chosen column [runs]."""
    best: np.ndarray
    """AUROC of the column that is best on the test folds [runs]."""


def null_runs(runs: int, permutations: int, first_seed: int = 0) -> NullResult:
    """Runs in which images differ in difficulty, and no vector knows anything."""
    family, chosen, aurocs, best = [], [], [], []
    for seed in range(first_seed, first_seed + runs):
        made = planted(seed, images=80, signal=0, image_effect=1.5)
        rng = np.random.default_rng(seed)
        made["vision_token_representation.layer_0"] = rng.standard_normal((80, 12)).astype(np.float32)[made["image"]]
        design = design_of(made, permutations=permutations, seed=seed)
        fits = fit_all(made, design)
        highest = np.max([fit.statistics for fit in fits.values()], axis=0)
        choice, _ = scored_choice(fits, design)
        assert choice.statistics is not None
        family.append(p_value(highest, highest[OBSERVED]))
        chosen.append(p_value(choice.statistics, choice.statistics[OBSERVED]))
        aurocs.append(auroc(design.y, choice.scores))
        best.append(highest[OBSERVED])
    return NullResult(*map(np.array, (family, chosen, aurocs, best)))


@dataclass(frozen=True)
class Coverage:
    """How often 95 % intervals hold the truth."""

    truth: float
    """Mean AUROC over the runs, or of the fitted probes on new images."""
    spread: float
    """Standard deviation over the runs, divided by the mean standard error."""
    plain: float
    """Share of intervals that hold the truth, as they are."""
    widened: float
    """The same with standard errors times 1.35."""


def cross_validated_coverage(runs: int, signal: float) -> Coverage:
    """Intervals of cross-validated scores; the truth is their mean over the runs."""
    values, errors = [], []
    for seed in range(runs):
        made = planted(seed, images=100, signal=signal, image_effect=1.5)
        design = design_of(made, seed=seed)
        fit = fit_column(columns_of(made, design)[SCORE], design)
        estimate, covariance = clustered_delong(design.y, fit.scores[:, None].astype(np.float64), design.groups)
        values.append(estimate[0])
        errors.append(np.sqrt(covariance[0, 0]))
    found, error = np.array(values), np.array(errors)
    off = np.abs(found - found.mean()) / error
    return Coverage(
        float(found.mean()), float(found.std() / error.mean()), np.mean(off < 1.96), np.mean(off < 1.96 * 1.35)
    )


def held_out_coverage(runs: int, signal: float) -> Coverage:
    """Intervals of held-out images; the truth is each fitted probe's AUROC on 3,000 new images."""
    inside, truths, errors, misses = [], [], [], []
    for seed in range(runs):
        made = planted(seed, images=200, signal=signal, image_effect=1.5)
        design, test = _held_out(made, seed)
        fit = fit_column(columns_of(made, design)[SCORE], design)
        scores = fit.scores[test][:, None].astype(np.float64)
        estimate, covariance = clustered_delong(design.y[test], scores, design.groups[test])
        new = planted(100_000 + seed, images=3000, signal=signal, image_effect=1.5)
        scaled = (new[SCORE] - fit.shift) * fit.scale
        truth = auroc(new["right"].astype(float), scaled @ fit.weights.coefficients[:, 0])
        interval = share_interval(estimate[0], covariance[0, 0], 1.0)
        inside.append(interval.low <= truth <= interval.high)
        truths.append(truth)
        errors.append(np.sqrt(covariance[0, 0]))
        misses.append(estimate[0] - truth)
    return Coverage(float(np.mean(truths)), float(np.std(misses) / np.mean(errors)), float(np.mean(inside)), np.nan)


def _held_out(made, seed: int) -> tuple[Design, slice]:
    y = made["right"].astype(np.float32)
    test = hold_out(y, made["image"], 0.3, seed)
    fold = np.full(len(y), 5)
    groups = np.unique(made["image"][~test], return_inverse=True)[1]
    fold[~test] = deal_folds(y[~test], groups, 5, seed)
    order = np.argsort(fold, kind="stable")
    bounds = tuple(np.concatenate([[0], np.cumsum(np.bincount(fold))]).tolist())
    design = design_of(made, seed=seed)
    design = replace(
        design, rows=order, bounds=bounds, splits=held_out_test(5), labels=y[None, order], groups=made["image"][order]
    )
    return design, design.fold_slice(5)


def leak(runs: int) -> tuple[float, float]:
    """Mean AUROC on null runs with images kept together, and torn apart; image vectors show which image it is."""
    means = []
    for by_image in (True, False):
        found = []
        for seed in range(runs):
            rng = np.random.default_rng(seed)
            made = planted(seed, images=120, signal=0, image_effect=1.5)
            made[SCORE] = rng.standard_normal((120, 48)).astype(np.float32)[made["image"]]
            made[SCORE] += 0.5 * rng.standard_normal(made[SCORE].shape).astype(np.float32)
            design = design_of(made, seed=seed, by_image=by_image)
            found.append(auroc(design.y, fit_column(columns_of(made, design)[SCORE], design).scores))
        means.append(float(np.mean(found)))
    return means[0], means[1]

"""Ridge probes against scikit-learn, folds that keep images together, and what null runs and planted signals give."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from midsight.probes.crossval import fit_column
from midsight.probes.folds import deal_folds, hold_out, joint_groups, permuted_labels
from midsight.probes.ridge import PENALTIES, FoldedFeatures
from support.null_runs import (
    SCORE,
    cross_validated_coverage,
    fit_all,
    held_out_coverage,
    leak,
    null_runs,
    p_value,
)
from support.planted import IMAGE, QUERY, design_of, planted


def standardised_ridge(train, y, test, penalty):
    """Scores of scikit-learn's ridge on features standardised by the training rows."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    ridge = Ridge(alpha=penalty * len(train)).fit((train - mean) / deviation, y)
    return ridge.predict((test - mean) / deviation)


@pytest.mark.parametrize(("images", "width"), [(60, 12), (10, 60)])
@pytest.mark.parametrize("massive", [False, True])
def test_scores_are_scikit_learns(images, width, massive):
    """With more samples than features and with fewer, also where some features are in the thousands."""
    made = planted(3, images=images)
    design = design_of(made)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((len(design.rows), width)) + 0.5 * design.y[:, None]
    if massive:
        features[:, 0] = features[:, 0] * 3 + 1200
    folded = FoldedFeatures(features.astype(np.float32), design.bounds, design.labels)
    train, test = np.r_[0 : design.bounds[2]], design.fold_slice(2)
    for penalty, weights in zip(PENALTIES, folded.solutions((0, 1), PENALTIES), strict=True):
        mine = weights.scores(folded.rows(2))[0]
        reference = standardised_ridge(features[train], design.y[train], features[test], penalty)
        centred = reference - design.y[train].mean()
        assert mine == pytest.approx(centred / centred.std(), rel=2e-3, abs=2e-3)


@pytest.mark.slow
def test_the_penalty_is_chosen_in_inner_folds_as_a_loop_over_scikit_learn_does():
    made = planted(5, images=40, signal=1.0)
    design = design_of(made)
    features = made[SCORE][design.rows].astype(np.float64)
    fit = fit_column(features.astype(np.float32), design)
    folds = range(5)
    rows = [np.r_[design.fold_slice(fold)] for fold in folds]
    for index, split in enumerate(design.splits):
        means = []
        for penalty in PENALTIES:
            inner = []
            for held in split.train:
                train = np.concatenate([rows[fold] for fold in split.train if fold != held])
                scores = standardised_ridge(features[train], design.y[train], features[rows[held]], penalty)
                inner.append(roc_auc_score(design.y[rows[held]], scores))
            means.append(np.mean(inner))
        assert fit.inner_aurocs[index, 0] == pytest.approx(max(means), abs=2e-3)
        train = np.concatenate([rows[fold] for fold in split.train])
        best = PENALTIES[int(np.argmax(means))]
        scores = standardised_ridge(features[train], design.y[train], features[rows[split.test]], best)
        assert fit.fold_aurocs[index, 0] == pytest.approx(roc_auc_score(design.y[rows[split.test]], scores), abs=2e-3)
    assert fit.statistics[0] == pytest.approx(roc_auc_score(design.y, fit.scores))


def test_images_stay_together_and_folds_are_alike():
    made = planted(1, images=100)
    y, groups = made["right"].astype(float), made["image"]
    fold = deal_folds(y, groups, 5, 0)
    assert all(len({*fold[groups == group]}) == 1 for group in range(100))
    assert np.bincount(fold).tolist() == [80] * 5
    rates = [y[fold == one].mean() for one in range(5)]
    assert max(rates) - min(rates) < 0.05
    test = hold_out(y, groups, 0.3, 0)
    assert 0.25 <= test.mean() <= 0.35
    assert not {*groups[test]} & {*groups[~test]}


def test_groups_join_what_shares_any_value():
    groups = joint_groups([["a", "a", "b", "c", "d"], [1, 2, 2, 3, 4]])
    assert groups[0] == groups[1] == groups[2]
    assert len({*groups}) == 3


def test_permuted_labels_move_in_whole_images_of_equal_composition():
    groups = np.repeat(np.arange(6), [2, 2, 2, 3, 3, 1])
    strata = np.zeros(len(groups), np.int64)
    y = np.array([1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1], np.float32)
    labels, movable = permuted_labels(y, groups, strata, 50, 0)
    assert movable == pytest.approx(12 / 13)
    assert labels[0].tolist() == y.tolist()
    blocks = {group: [tuple(y[groups == one]) for one in range(6) if (groups == one).sum() == (groups == group).sum()]
              for group in range(6)}  # fmt: skip
    for row in labels[1:]:
        assert row.sum() == y.sum()
        assert all(tuple(row[groups == group]) in blocks[group] for group in range(6))
    assert len({tuple(row) for row in labels}) > 10


def test_permuted_labels_keep_their_stratum():
    groups, strata = np.repeat(np.arange(4), 2), np.array([0, 1, 1, 0, 0, 1, 0, 1])
    y = (strata == 1).astype(np.float32)
    labels, _ = permuted_labels(y, groups, strata, 20, 0)
    assert (labels == y).all()


def test_a_planted_signal_is_found_in_its_column_only():
    made = planted(2, images=100, signal=1.0, image_effect=0.0)
    design = design_of(made, permutations=99)
    fits = fit_all(made, design)
    highest = np.max([fit.statistics for fit in fits.values()], axis=0)
    p = {name: p_value(highest, fit.statistics[0]) for name, fit in fits.items()}
    assert p[SCORE] == 0.01
    assert all(value > 0.05 for name, value in p.items() if name != SCORE)


def test_image_vectors_find_an_images_difficulty_and_nothing_else():
    made = planted(4, images=150, signal=0.0, image_effect=2.0)
    design = design_of(made, permutations=39)
    fits = fit_all(made, design)
    assert p_value(fits[IMAGE].statistics, fits[IMAGE].statistics[0]) == 1 / 40
    assert p_value(fits[QUERY.format(0)].statistics, fits[QUERY.format(0)].statistics[0]) > 0.05


@pytest.mark.slow
def test_on_null_runs_few_are_found():
    """The script in scripts/ does 200 runs with 199 permutations, for docs/probing.md."""
    null = null_runs(30, 19, first_seed=1000)
    most = binom.ppf(0.999, 30, 0.05)
    assert (null.family <= 0.05).sum() <= most
    assert (null.chosen <= 0.05).sum() <= most
    assert null.aurocs.mean() == pytest.approx(0.5, abs=0.03)
    assert null.best.mean() > null.aurocs.mean() + 0.02


def test_folds_that_ignore_images_would_claim_what_is_not_there():
    grouped, torn = leak(12)
    assert grouped == pytest.approx(0.5, abs=0.03)
    assert torn > 0.56


@pytest.mark.slow
def test_widened_intervals_cover():
    found = cross_validated_coverage(60, 1.0)
    assert found.widened >= 0.9
    assert found.plain <= found.widened


@pytest.mark.slow
def test_held_out_intervals_cover_the_fitted_probe():
    assert held_out_coverage(40, 1.0).plain >= 0.85


def test_a_fold_of_one_image_has_scores_in_the_range_of_the_others():
    """Its scores of an image column are equal but for rounding; divided by that, they would exceed all others."""
    made = planted(0, images=8, questions=8)
    design = design_of(made, folds=5)
    assert 1 in {len({*design.groups[design.fold_slice(fold)]}) for fold in range(5)}
    fit = fit_column(made[IMAGE][design.rows], design)
    assert np.abs(fit.scores[design.tested]).max() < 10

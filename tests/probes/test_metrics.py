"""Metrics equal scikit-learn's, and intervals those of closed forms and of resampling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from midsight.probes.metrics import (
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
from midsight.probes.stacking import fit_logistic


def sample(seed, n=300, ties=False):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.3).astype(float)
    scores = rng.standard_normal(n) + y
    return y, scores.round(0) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_auroc_and_average_precision_are_scikit_learns(seed, ties):
    y, scores = sample(seed, ties=ties)
    assert auroc(y, scores) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
    assert average_precision(y, scores) == pytest.approx(average_precision_score(y, scores), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_many_aurocs_are_single_ones(ties):
    rows = [sample(seed, ties=ties) for seed in range(5)]
    labels, scores = (np.stack(part).astype(np.float32) for part in zip(*rows, strict=True))
    assert many_aurocs(labels, scores) == pytest.approx(
        [roc_auc_score(y, s) for y, s in zip(labels, scores, strict=True)]
    )


@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(width=32, allow_nan=False) | st.sampled_from([-1.0, -0.0, 0.0, 1.0])),
        min_size=1,
    )
)
def test_many_aurocs_are_exact_for_any_scores(pairs):
    """Also with ties, negative numbers, both zeros and infinities: as from the mean ranks of equal scores."""
    labels, scores = (np.array(part, np.float32) for part in zip(*pairs, strict=True))
    positives = float(labels.sum())
    below = labels.astype(np.float64) @ rankdata(scores) - positives * (positives + 1) / 2
    pairs_of_classes = positives * (len(labels) - positives)
    expected = below / pairs_of_classes if pairs_of_classes else np.nan
    np.testing.assert_array_equal(many_aurocs(labels[None], scores[None]), [expected])


def test_one_class_has_no_auroc():
    assert np.isnan(auroc(np.ones(3), np.arange(3.0)))
    assert np.isnan(many_aurocs(np.zeros((1, 4), np.float32), np.arange(4.0)[None])).all()


def test_accuracy_at_the_base_rate_calls_as_many_positive_as_there_are():
    y = np.array([1, 1, 0, 0, 0])
    assert accuracy_at_base_rate(y, np.array([5, 4, 3, 2, 1])) == 1
    assert accuracy_at_base_rate(y, np.array([5, 2, 4, 3, 1])) == 0.6
    assert accuracy_at_base_rate(y, np.zeros(5)) == pytest.approx(0.4**2 + 0.6**2)


def test_brier_is_scikit_learns_and_calibration_error_follows_its_definition():
    y, scores = sample(1)
    probability = 1 / (1 + np.exp(-scores))
    assert brier(y, probability) == pytest.approx(brier_score_loss(y, probability))
    assert calibration_error(np.array([0, 0, 1, 1] * 10), np.full(40, 0.8)) >= 0.3 - 1e-12
    rng = np.random.default_rng(0)
    truth = rng.random(20_000)
    assert calibration_error((rng.random(20_000) < truth).astype(float), truth) < 0.02


def test_delong_without_clusters_is_the_published_variance():
    """DeLong, DeLong and Clarke-Pearson 1988: S10 / positives + S01 / negatives, here from all pairs."""
    y, scores = sample(2, ties=True)
    pairs = (scores[y == 1][:, None] > scores[y == 0]) + 0.5 * (scores[y == 1][:, None] == scores[y == 0])
    expected = pairs.mean(1).var(ddof=1) / y.sum() + pairs.mean(0).var(ddof=1) / (1 - y).sum()
    estimate, covariance = clustered_delong(y, scores[:, None], np.arange(len(y)))
    assert estimate[0] == pytest.approx(roc_auc_score(y, scores))
    assert covariance[0, 0] == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_clustered_delong_is_the_spread_over_resampled_clusters():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(150), 4)
    effect = rng.standard_normal(150)[groups]
    y = (rng.random(600) < 1 / (1 + np.exp(-effect))).astype(float)
    scores = np.column_stack([effect + rng.standard_normal(600), rng.standard_normal(600)])
    _, covariance = clustered_delong(y, scores, groups)
    rows = np.arange(600).reshape(150, 4)
    drawn = []
    for _ in range(150):
        chosen = rows[rng.integers(0, 150, 150)].ravel()
        drawn.append([roc_auc_score(y[chosen], scores[chosen, c]) for c in range(2)])
    spread = np.cov(np.array(drawn).T)
    assert np.sqrt(np.diag(covariance)) == pytest.approx(np.sqrt(np.diag(spread)), rel=0.2)
    _, independent = clustered_delong(y, scores, np.arange(600))
    assert covariance[0, 0] > 1.3 * independent[0, 0]


def test_copies_of_a_sample_in_its_cluster_add_no_certainty():
    y, scores = sample(5)
    estimate, covariance = clustered_delong(y, scores[:, None], np.arange(len(y)))
    copied = clustered_delong(np.repeat(y, 3), np.repeat(scores, 3)[:, None], np.repeat(np.arange(len(y)), 3))
    assert copied[0][0] == pytest.approx(estimate[0])
    assert copied[1][0, 0] == pytest.approx(covariance[0, 0])


def test_a_score_of_the_image_alone_is_surely_one_half_if_each_image_has_both_labels():
    scores = np.repeat(np.random.default_rng(6).standard_normal(40), 2)[:, None]
    estimate, covariance = clustered_delong(np.tile([1, 0], 40), scores, np.repeat(np.arange(40), 2))
    assert estimate[0] == 0.5
    assert covariance[0, 0] == pytest.approx(0, abs=1e-12)


def test_intervals_widen_and_stay_shares():
    assert share_interval(0.99, 0.01**2, 2.0).high == 1.0
    assert share_interval(0.7, 0.05**2, 1.0).low == pytest.approx(0.7 - 1.959964 * 0.05)
    same = difference_interval(np.array([0.8, 0.8]), np.full((2, 2), 0.01), 1.35)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0))


def test_the_small_logistic_regression_is_scikit_learns():
    rng = np.random.default_rng(4)
    features = rng.standard_normal((400, 3)) * [1, 50, 0.01] + [0, 1000, 0]
    y = (rng.random(400) < 1 / (1 + np.exp(-(features[:, 0] - (features[:, 1] - 1000) / 50)))).astype(float)
    coefficients, intercept = fit_logistic(features, y)
    deviation = features.std(axis=0)
    reference = LogisticRegression(C=1 / (1e-3 * 400), tol=1e-10, max_iter=1000)
    reference.fit((features - features.mean(axis=0)) / deviation, y)
    assert coefficients * deviation == pytest.approx(reference.coef_[0], abs=1e-4)
    expected = float(np.ravel(reference.intercept_)[0])
    assert intercept + features.mean(axis=0) @ coefficients == pytest.approx(expected, abs=1e-4)


def test_separable_data_stay_finite():
    coefficients, intercept = fit_logistic(np.arange(20.0)[:, None], (np.arange(20) > 9).astype(float))
    assert np.isfinite([*coefficients, intercept]).all()

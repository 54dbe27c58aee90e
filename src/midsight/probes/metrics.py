"""How well scores tell positives from negatives, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z_95 = 1.959964
"""Half-width of the interval that holds 95 % of a normal distribution, in standard deviations."""
BINS = 10
"""Bins of equal size in the calibration error."""


def auroc(y: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a positive has a higher score than a negative, ties counting half; NaN with one class."""
    return float(placements(y, scores[:, None])[0].mean()) if 0 < y.sum() < len(y) else float("nan")


def many_aurocs(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUROC of each row of scores for the labels of the same row, ties counting half; float32 [m, n] both."""
    positives = labels.sum(axis=1, dtype=np.float64)
    ranks = np.array([_rank_sum(one, of) for one, of in zip(labels, scores, strict=True)], np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        below = ranks - positives * (positives + 1) / 2
        return below / (positives * (labels.shape[1] - positives))


def _rank_sum(labels: np.ndarray, scores: np.ndarray) -> float:
    """Sum of the ranks of the positives, from 1; equal scores share their mean rank.

    One sort of integers is several times faster than ranking: a score's bits, which are in the order of the scores
    once those of negative numbers are turned round, with the label as the last bit.
    """
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.int32)  # + 0 makes -0 equal to 0
    keys = (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64) << 1
    keys |= labels.astype(np.int64)
    keys.sort()
    is_positive = keys & 1
    ordinal = np.flatnonzero(is_positive).sum() + is_positive.sum()
    return float(ordinal) - _tied_pairs(keys >> 1, is_positive) / 2


def _tied_pairs(ordered: np.ndarray, is_positive: np.ndarray) -> int:
    """Number of pairs of a positive and a negative whose ordered values are equal."""
    as_before = ordered[1:] == ordered[:-1]
    tied = np.flatnonzero(np.append(as_before, False) | np.append(False, as_before))
    _, run, sizes = np.unique(ordered[tied], return_inverse=True, return_counts=True)
    positives = np.bincount(run, weights=is_positive[tied], minlength=len(sizes))
    return int(positives @ (sizes - positives))


def placements(y: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's components: shares of negatives below each positive, and of positives above each negative.

    Args:
        y: 0 or 1 [n].
        scores: float [n, c].

    Returns:
        float64 [positives, c] and [negatives, c]; ties count half.
    """
    positive, negative = scores[y == 1], scores[y == 0]
    below = np.empty(positive.shape)
    above = np.empty(negative.shape)
    for c in range(scores.shape[1]):
        low, high = np.sort(negative[:, c]), np.sort(positive[:, c])
        below[:, c] = np.searchsorted(low, positive[:, c], "left") + np.searchsorted(low, positive[:, c], "right")
        above[:, c] = np.searchsorted(high, negative[:, c], "left") + np.searchsorted(high, negative[:, c], "right")
    return below / (2 * len(negative)), 1 - above / (2 * len(positive))


def clustered_delong(y: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of several scores of the same samples, and their covariance with samples of one group dependent.

    DeLong's estimate, for clustered data as in Obuchowski 1997.

    Args:
        y: 0 or 1 [n], both of them.
        scores: float [n, c].
        groups: Number of the group [n].

    Returns:
        float64 [c] and [c, c].
    """
    below, above = placements(y, scores)
    estimate = below.mean(axis=0)
    codes = np.unique(groups, return_inverse=True)[1]
    count = int(codes.max()) + 1
    influence = np.zeros((count, scores.shape[1]))
    np.add.at(influence, codes[y == 1], (below - estimate) / len(below))
    np.add.at(influence, codes[y == 0], (above - estimate) / len(above))
    return estimate, influence.T @ influence * count / max(count - 1, 1)


def average_precision(y: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as a step function; equal scores are one step."""
    order = np.argsort(-scores, kind="stable")
    hits, ordered = np.cumsum(y[order]), scores[order]
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
    recall_steps = np.diff(np.r_[0, hits[last]]) / y.sum()
    return float((hits[last] / (last + 1)) @ recall_steps)


def accuracy_at_base_rate(y: np.ndarray, scores: np.ndarray) -> float:
    """Accuracy if as many samples are called positive as there are positives; equal scores share their places."""
    order = np.argsort(-scores, kind="stable")
    count, cut = int(y.sum()), scores[order][int(y.sum()) - 1]
    above, at = scores > cut, scores == cut
    share = (count - above.sum()) / at.sum()
    hits = y[above].sum() + share * y[at].sum()
    return float((hits + (len(y) - count) - (count - hits)) / len(y))


def brier(y: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared error of probabilities."""
    return float(np.mean((probability - y) ** 2))


def calibration_error(y: np.ndarray, probability: np.ndarray) -> float:
    """Mean distance between predicted and actual share of positives, over bins with equally many samples."""
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, min(BINS, len(y)))
    return float(sum(len(one) * abs(probability[one].mean() - y[one].mean()) for one in bins) / len(y))


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    """The estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def share_interval(value: float, variance: float, widening: float) -> Interval:
    """The interval of an AUROC; `widening` multiplies its standard error."""
    half = Z_95 * widening * float(np.sqrt(max(variance, 0.0)))
    return Interval(float(value), max(0.0, float(value) - half), min(1.0, float(value) + half))


def difference_interval(estimates: np.ndarray, covariance: np.ndarray, widening: float) -> Interval:
    """The interval of the first of two AUROCs of the same samples minus the second."""
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    half = Z_95 * widening * float(np.sqrt(max(variance, 0.0)))
    value = float(estimates[0] - estimates[1])
    return Interval(value, value - half, value + half)

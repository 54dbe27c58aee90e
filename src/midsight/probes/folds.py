"""Groups, folds and permutations: samples of one group, usually one image, always stay together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

OBSERVED = 0
"""Row of permuted labels that holds the labels as they are."""


def joint_groups(columns: Sequence[Sequence[object]]) -> np.ndarray:
    """Groups of samples that share a value in any of the columns, directly or through others.

    Args:
        columns: For each column a value for each sample.

    Returns:
        Number of the group, from 0, int64 [n].
    """
    rows, values, offset = [], [], 0
    for column in columns:
        _, codes = np.unique(np.asarray([str(value) for value in column]), return_inverse=True)
        rows.append(np.arange(len(codes)))
        values.append(codes + offset)
        offset += int(codes.max()) + 1 if len(codes) else 0
    n = len(rows[0])
    edges = (np.ones(n * len(rows)), (np.concatenate(rows), n + np.concatenate(values)))
    _, component = connected_components(coo_array(edges, shape=(n + offset, n + offset)), directed=False)
    return np.unique(component[:n], return_inverse=True)[1].astype(np.int64)


def deal_folds(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Whole groups to folds of about equal size and share of positives.

    Groups are sorted by positives, then by size, and dealt out in random order, a round at a time.

    Args:
        y: 0 or 1 [n].
        groups: Number of the group [n], from 0.
        folds: Number of folds.
        seed: Of the random order.

    Returns:
        Number of the fold, int64 [n].
    """
    rng = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    positives, sizes = np.bincount(groups, weights=y, minlength=count), np.bincount(groups, minlength=count)
    order = np.lexsort((rng.random(count), sizes, positives))
    deal = np.concatenate([rng.permutation(folds) for _ in range(-(-count // folds))])[:count]
    fold = np.empty(count, np.int64)
    fold[order] = deal
    return fold[groups]


def hold_out(y: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Whole groups for the test: about `share` of them, with about the same share of positives; bool [n]."""
    parts = 20
    return deal_folds(y, groups, parts, seed) < max(1, round(share * parts))


def permuted_labels(
    y: np.ndarray, groups: np.ndarray, strata: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, float]:
    """Labels as they are, and `count` times exchanged between groups of equal composition.

    A group's labels move together, so that the dependence within an image stays. They go to a group with as many
    samples of each stratum. Labels never move within a group: image-only vectors rightly predict an image's
    difficulty, and that null hypothesis would call it a finding.

    Args:
        y: 0 or 1 [n].
        groups: Number of the group [n].
        strata: Number of the stratum [n].
        count: Number of permutations.
        seed: Of the permutations.

    Returns:
        float32 [1 + count, n], and the share of samples in groups that have another one to exchange with.
    """
    order = np.lexsort((np.arange(len(y)), strata, groups))
    starts = np.flatnonzero(np.r_[True, np.diff(groups[order]) != 0])
    blocks = np.split(order, starts[1:])
    alike: dict[bytes, list[np.ndarray]] = {}
    for block in blocks:
        alike.setdefault(strata[block].tobytes(), []).append(block)
    rng = np.random.default_rng(seed)
    out = np.tile(y.astype(np.float32), (1 + count, 1))
    movable = 0
    for members in alike.values():
        if len(members) < 2:
            continue
        places = np.stack(members)
        movable += places.size
        for row in range(1, 1 + count):
            out[row, places] = y[places[rng.permutation(len(members))]]
    return out, movable / len(y)

"""Probes other than the ridge, for chosen columns: logistic regression, the paper's network, the paper's recipe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from midsight.probes.crossval import Design
from midsight.probes.finding import HalpResult
from midsight.probes.metrics import auroc
from midsight.probes.networks import network_scores, train_as_halp, train_network
from midsight.probes.ridge import scale_in_place
from midsight.probes.scored import Scored
from midsight.taps.tap import Tap

LOGISTIC_PENALTIES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Penalties per sample on features with standard deviation 1; scikit-learn's C is 1 / (penalty * samples)."""
HALP_TEST_SHARE, HALP_RANDOM_STATE = 0.2, 42


def score_logistic(name: str, features: np.ndarray, design: Design, *, image_only: bool) -> Scored:
    """A logistic probe; the penalty is chosen in inner folds. `features` are scaled in place."""
    scale_in_place(features)
    rows = [np.r_[design.fold_slice(fold)] for fold in range(len(design.bounds) - 1)]
    out = np.full(design.bounds[-1], np.nan)
    training = np.full((len(design.splits), design.bounds[-1]), np.nan)
    for index, split in enumerate(design.splits):
        held: dict[float, dict[int, np.ndarray]] = {penalty: {} for penalty in LOGISTIC_PENALTIES}
        for fold in split.train:
            train = np.concatenate([rows[one] for one in split.train if one != fold])
            for penalty in LOGISTIC_PENALTIES:
                held[penalty][fold] = _logistic(features, design.y, train, penalty)(rows[fold])
        best = max(
            LOGISTIC_PENALTIES,
            key=lambda penalty: np.nanmean([auroc(design.y[rows[fold]], held[penalty][fold]) for fold in split.train]),
        )
        for fold in split.train:
            training[index, rows[fold]] = held[best][fold]
        train = np.concatenate([rows[fold] for fold in split.train])
        out[rows[split.test]] = _logistic(features, design.y, train, best)(rows[split.test])
    return Scored(name, "logistic", "before the answer", out, training, out, None, image_only=image_only)


def score_network(name: str, features: np.ndarray, design: Design, seed: int, *, image_only: bool) -> Scored:
    """The paper's network with early stopping; one training fold of each split decides when. Scales in place."""
    scale_in_place(features)
    rows = [np.r_[design.fold_slice(fold)] for fold in range(len(design.bounds) - 1)]
    out = np.full(design.bounds[-1], np.nan)
    training = np.full((len(design.splits), design.bounds[-1]), np.nan)
    for index, split in enumerate(design.splits):
        stop = split.train[index % len(split.train)]
        train = np.concatenate([rows[fold] for fold in split.train if fold != stop])
        network = train_network(
            features[train], design.y[train], (features[rows[stop]], design.y[rows[stop]]), seed + index
        )
        training[index, rows[stop]] = network_scores(network, features[rows[stop]])
        out[rows[split.test]] = network_scores(network, features[rows[split.test]])
    return Scored(name, "mlp", "before the answer", out, training, out, None, image_only=image_only)


def score_as_halp(name: str, features: np.ndarray, y: np.ndarray, images: np.ndarray, seed: int) -> HalpResult:
    """The recipe of the HALP paper, with its leaks: rows are split, not images, and the last epoch is taken.

    Args:
        name: The column.
        features: float32 [n, width], rows in dataset order, as stored.
        y: 0 or 1, float32 [n].
        images: Number of the image [n].
        seed: Of the network; the paper's was not fixed.

    Returns:
        What the paper reports of one column.
    """
    train, test = train_test_split(
        np.arange(len(y)), test_size=HALP_TEST_SHARE, random_state=HALP_RANDOM_STATE, stratify=y
    )
    network = train_as_halp(features[train], y[train], seed)
    tap = Tap.parse_or_none(name)
    return HalpResult(
        column=name,
        layer=tap.layer if tap else None,
        position=tap.position if tap else None,
        auroc=auroc(y[test], network_scores(network, features[test])),
        train_auroc=auroc(y[train], network_scores(network, features[train])),
        tested=len(test),
        tested_on_training_images=int(np.isin(images[test], images[train]).sum()),
    )


def _logistic(
    features: np.ndarray, y: np.ndarray, train: np.ndarray, penalty: float
) -> Callable[[np.ndarray], np.ndarray]:
    inputs = features[train]
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    deviation = np.where(deviation > 1e-5, deviation, np.inf)
    model = LogisticRegression(C=1 / (penalty * len(train)), max_iter=500).fit((inputs - mean) / deviation, y[train])
    return lambda rows: model.decision_function((features[rows] - mean) / deviation)

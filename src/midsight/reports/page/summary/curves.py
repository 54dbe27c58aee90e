"""What follows from a finding's predictions: calibration, and accuracy by the share answered."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from midsight.probes.finding import CurvePoint
from midsight.probes.metrics import BINS
from midsight.probes.scored import surest_first
from midsight.reports.page.content import CalibrationPoint, Curves

SCORES = ("probe", "confidence")
"""Columns of predictions that hold probabilities."""


def curves_of(predictions: pa.Table | None) -> tuple[Curves, ...]:
    """The curves of the probe and of the model's confidence, as far as there are predictions of them."""
    if predictions is None or not predictions.num_rows:
        return ()
    y = np.array(predictions["label"].to_pylist(), bool)
    there = [name for name in SCORES if not predictions[name].null_count]
    return tuple(_curves(name, y, np.array(predictions[name].to_pylist(), np.float64)) for name in there)


def _curves(name: str, y: np.ndarray, probability: np.ndarray) -> Curves:
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, min(BINS, len(y)))
    return Curves(
        score=name,
        calibration=tuple(
            CalibrationPoint(predicted=float(probability[one].mean()), share=float(y[one].mean()), n=len(one))
            for one in bins
        ),
        answered=tuple(
            CurvePoint(answered=share, accuracy=accuracy) for share, accuracy in surest_first(y, probability)
        ),
    )

"""Fitted probes as files: safetensors for the numbers, JSON for what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from midsight.errors import MidsightError, Option
from midsight.probes.stacking import sigmoid

PROBE_FORMAT = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "probe.json"


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe of one vector column.

    The logit of a vector x is `slope * ((x - shift) * weight).sum() + intercept`.
    """

    column: str
    """The vector column that it reads."""
    label: str
    """What it predicts."""
    shift: np.ndarray = field(repr=False)
    """Mean of the training vectors, float64 [width]."""
    weight: np.ndarray = field(repr=False)
    """float64 [width]."""
    slope: float
    """Calibration: logit per unit of score."""
    intercept: float
    """Calibration: logit at score 0."""
    facts: Mapping[str, Any] = field(repr=False)
    """Where it comes from: run, model, penalty, versions."""

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """Calibrated probabilities that the label is true.

        Args:
            vectors: The column's vectors, float [n, width].

        Returns:
            float64 [n].

        Raises:
            MidsightError: The vectors have another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.weight):
            raise MidsightError(
                f"The probe of {self.column} reads vectors [n, {len(self.weight)}], and these are "
                f"{[*vectors.shape]}; give those of {self.column}."
            )
        scores = (vectors.astype(np.float64) - self.shift) @ self.weight
        return sigmoid(self.slope * scores + self.intercept)

    @classmethod
    def load(cls, path: str | Path, column: str | None = None) -> Probe:
        """Reads a probe.

        Args:
            path: The folder `findings/NAME/probe` of a run, or the finding's.
            column: The column; by default the one that inner folds chose most often.

        Returns:
            The probe.

        Raises:
            MidsightError: There is no such probe, or a file is damaged.
        """
        folder = Path(path)
        folder = folder / "probe" if (folder / "probe").is_dir() else folder
        try:
            described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
            column = column or str(described["default"])
            own = described["columns"].get(column)
            if own is None:
                raise MidsightError(
                    f"{folder} has no probe of {column!r}; it has {', '.join(described['columns'])}; choose with ",
                    Option("column"), ".",
                )  # fmt: skip
            return cls(
                column=column,
                label=described["label"],
                shift=tensors[f"{column}.shift"],
                weight=tensors[f"{column}.weight"],
                slope=float(own["slope"]),
                intercept=float(own["intercept"]),
                facts={key: value for key, value in described.items() if key != "columns"} | own,
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise MidsightError(
                f"{folder} does not hold a probe ({error}); give the folder `findings/NAME/probe` of a run."
            ) from error


def probe_files(probes: Mapping[str, Probe], default: str, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a folder of probes by name, as `Probe.load` reads them."""
    tensors: dict[str, np.ndarray] = {}
    for name, probe in probes.items():
        tensors |= {f"{name}.shift": probe.shift, f"{name}.weight": np.ascontiguousarray(probe.weight)}
    described = {
        "format": PROBE_FORMAT,
        "default": default,
        **facts,
        "columns": {
            name: {"slope": probe.slope, "intercept": probe.intercept, **probe.facts} for name, probe in probes.items()
        },
    }
    data = save(tensors)
    load(data)  # what cannot be read back is not written
    return {WEIGHTS: data, DESCRIPTION: (json.dumps(described, indent=2) + "\n").encode("ascii")}

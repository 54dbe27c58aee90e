"""Probes that nobody trained, with scores that spread, for tests of what is done with them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from midsight.store.probe import Probe, ProbeOrigin, probe_files


def made_up_probe(run, column: str, *, seed: int = 0, **changes) -> Probe:
    """A probe of a run's column in a random direction, with the run's origin; its risks are spread around one half."""
    vectors = run.matrix(column).astype(np.float64)
    weight = np.random.default_rng(seed).standard_normal(vectors.shape[1])
    shift = vectors.mean(axis=0)
    scores = ((vectors - shift) * weight).sum(axis=1)
    given: dict[str, Any] = {
        "column": column,
        "label": "correct",
        "shift": shift,
        "weight": weight,
        "slope": float(2 / max(scores.std(), 1e-9)),
        "intercept": 0.1,
        "facts": {"label_source": "exact", "image_only": not column.startswith("query_token")},
        "origin": ProbeOrigin.of(run.spec),
    }
    return Probe(**{**given, **changes})


def write_probes(folder: Path, probes, **facts) -> Path:
    """Writes probes of one run as a finding has them, the first as the default; returns the folder."""
    first = probes[0]
    named = {"label": first.label, "label_source": "exact", "label_options": {}, **facts}
    files = probe_files({one.column: one for one in probes}, first.column, first.origin, named)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def of_another(probe: Probe, **origin) -> Probe:
    """The same probe with another origin."""
    assert probe.origin is not None
    return dataclasses.replace(probe, origin=dataclasses.replace(probe.origin, **origin))

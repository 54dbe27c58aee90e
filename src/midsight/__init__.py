"""midsight records what a vision-language model computes on its way to an answer.

Importing it is quick: torch and transformers are imported when a model is first needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from midsight.version import __version__ as __version__

if TYPE_CHECKING:
    from midsight.analysis import Run, open_run
    from midsight.errors import DamagedRunError, MidsightError, RunError, SampleError
    from midsight.extraction.model import Model, load, wrap
    from midsight.extraction.ray_cluster import Ray
    from midsight.extraction.request import Request
    from midsight.extraction.run import extract
    from midsight.extraction.todo import Progress
    from midsight.records import Record
    from midsight.samples.options import DatasetOptions
    from midsight.samples.sample import Failure, Sample
    from midsight.store.probe import Probe
    from midsight.taps.tap import Tap

_HOME = {
    "DamagedRunError": "midsight.errors",
    "DatasetOptions": "midsight.samples.options",
    "Failure": "midsight.samples.sample",
    "MidsightError": "midsight.errors",
    "Model": "midsight.extraction.model",
    "Probe": "midsight.store.probe",
    "Progress": "midsight.extraction.todo",
    "Ray": "midsight.extraction.ray_cluster",
    "Record": "midsight.records",
    "Request": "midsight.extraction.request",
    "Run": "midsight.analysis",
    "RunError": "midsight.errors",
    "Sample": "midsight.samples.sample",
    "SampleError": "midsight.errors",
    "Tap": "midsight.taps.tap",
    "extract": "midsight.extraction.run",
    "load": "midsight.extraction.model",
    "open_run": "midsight.analysis",
    "wrap": "midsight.extraction.model",
}

__all__ = [  # noqa: RUF022  (the order of the documentation)
    "load",
    "wrap",
    "extract",
    "open_run",
    "Model",
    "Request",
    "DatasetOptions",
    "Progress",
    "Ray",
    "Sample",
    "Failure",
    "Record",
    "Run",
    "Probe",
    "Tap",
    "MidsightError",
    "SampleError",
    "RunError",
    "DamagedRunError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'midsight' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

"""Packages that midsight uses if they are installed."""

from __future__ import annotations

import importlib
from typing import Any

from midsight.errors import MidsightError


def import_optional(package: str) -> Any:
    """The module `package`, which one of midsight's extras installs; raises MidsightError if it is missing."""
    extra = {"h5py": "hdf5", "ray.data": "ray", "submitit": "slurm"}.get(package, package)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MidsightError(f"{package} is not installed; install it with: pip install 'midsight[{extra}]'") from error

"""Packages that midsight uses where they are there."""

from __future__ import annotations

import importlib
from typing import Any

from midsight.errors import MidsightError


def import_optional(package: str) -> Any:
    """The module `package`, which the extra of the same purpose brings; raises MidsightError where it is not there."""
    extra = {"h5py": "hdf5"}.get(package, package)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MidsightError(f"{package} is not installed; install it with: pip install 'midsight[{extra}]'") from error

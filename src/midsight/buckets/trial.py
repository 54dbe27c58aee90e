"""The trial that a store does what two writers of a run need."""

from __future__ import annotations

import secrets
from typing import Any

from midsight.buckets.path import BucketPath
from midsight.errors import RunError


def require_conditional_writes(folder: BucketPath) -> None:
    """Raises RunError unless the store refuses to overwrite where it should; tries that on an object of its own."""
    trial = folder / f"trial-{secrets.token_hex(8)}"
    first = trial.create(b"first")
    try:
        _must_refuse(folder, lambda: trial.create(b"second"))
        second = trial.replace_if(b"second", first)
        _must_refuse(folder, lambda: trial.replace_if(b"third", first))
        trial.replace_if(b"fourth", second)
    finally:
        trial.unlink()


def _must_refuse(folder: BucketPath, write: Any) -> None:
    try:
        write()
    except FileExistsError:
        return
    raise RunError(
        f"{folder.root} overwrites objects where it is told not to, so two writers could damage a run; use a store "
        "with conditional writes, like S3, Google Cloud Storage or Azure, or extract into a folder and copy it."
    )

"""What one run of the suite makes once, whichever of its processes asks first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock


def once(target: Path, make: Callable[[Path], object]) -> Path:
    """`target`, which `make` writes unless it is there; nobody sees it half-made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            with TemporaryDirectory(dir=target.parent) as unfinished:
                made = Path(unfinished) / target.name
                make(made)
                made.rename(target)
    return target


def checkpoint_of_the_run(run_folder: Path, write: Callable[..., Path], **options: Any) -> Path:
    """The small checkpoint that `write` makes with `options`; who changes it, changes a copy."""
    name = "-".join([write.__name__, *(f"{key}-{value}" for key, value in sorted(options.items()))])
    return once(run_folder / "checkpoints" / name, lambda folder: write(folder, **options))

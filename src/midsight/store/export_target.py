"""Where an export goes: written aside, flushed, and renamed, so that it is there whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from midsight.errors import MidsightError, Option, RunError
from midsight.store.files import flush_folder, temporary_name
from midsight.store.reader import Run

_ADDRESS = re.compile(r"(s3|gs|az|hf):/+")
"""How an address begins, also if it was made a path."""


@contextmanager
def new_target(run: Run, out: Path, format: str, *, folder_of: str | None, overwrite: bool) -> Iterator[Path]:
    """A path to write an export to, inside the block; it becomes `out` when the block ends well.

    `folder_of` is the suffix of the files if `out` is a folder. Raises MidsightError if something that may not be
    replaced is there, RunError if the disk refuses; `out` is then unchanged.
    """
    aside = out.with_name(temporary_name(out.name))
    try:
        _check_target(run, out, format, folder_of=folder_of, overwrite=overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)  # left by a killed export
        aside.mkdir()
        try:
            made = aside / "made"
            yield made
            _flush(made)
            _put(made, out, aside / "old")
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{out} could not be written: {error.strerror or error}; fix that and run the same command again."
        ) from error


def require_local(out: Path, option: str = "out") -> None:
    """Raises MidsightError if `out` was meant as an address, and not as a file on this machine."""
    if address := _ADDRESS.match(str(out)):
        where = f"{address[1]}://{str(out)[address.end() :]}"
        raise MidsightError(
            Option(option, where), " is an address, and this is written to a file on a disk; name one, and copy it."
        )


def require_new(out: Path, *, overwrite: bool) -> bool:
    """Whether nothing is at `out` yet; raises MidsightError if something is that may not be replaced."""
    require_local(out)
    if not out.exists() and not out.is_symlink():
        return True
    if not overwrite:
        raise MidsightError(
            f"{out} exists already; choose another ", Option("out"), " or give ", Option("overwrite", True), "."
        )
    return False


def _check_target(run: Run, out: Path, format: str, *, folder_of: str | None, overwrite: bool) -> None:
    if isinstance(run.path, Path) and out.resolve().is_relative_to(run.path.resolve()):
        raise MidsightError(f"{out} is in the run folder {run.path}; choose an ", Option("out"), " outside of it.")
    if require_new(out, overwrite=overwrite):
        return
    if folder_of is None and not out.is_file():
        raise MidsightError(f"{out} is not a file, and {format} is written to one; choose another ", Option("out"), ".")
    if folder_of is not None and not (out.is_dir() and all(file.suffix == folder_of for file in out.iterdir())):
        raise MidsightError(
            f"{out} is not a folder of {folder_of} files, so it is not overwritten; choose another ", Option("out"), "."
        )


def _put(made: Path, out: Path, old: Path) -> None:
    """Rename `made` to `out`; a folder that is there already is renamed to `old` first."""
    if out.is_dir():
        out.replace(old)
    try:
        made.replace(out)
    except BaseException:
        if old.exists():
            old.replace(out)
        raise
    flush_folder(out.parent)


def _flush(made: Path) -> None:
    with ExitStack() as opened:
        for file in made.iterdir() if made.is_dir() else [made]:
            os.fsync(opened.enter_context(file.open("rb")).fileno())
    if made.is_dir():
        flush_folder(made)

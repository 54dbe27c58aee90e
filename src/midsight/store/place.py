"""The place of a run: a folder that is new, empty or a run, and that can be written."""

from __future__ import annotations

import re
import tempfile

from midsight.buckets.path import BucketPath, Place
from midsight.buckets.trial import require_conditional_writes
from midsight.errors import Option, RunError
from midsight.store.files import LOCKS, PARTS, RUN_JSON, reporting_unreadable, temporary_name
from midsight.store.index import INDEX
from midsight.store.spec import is_run

OF_A_RUN = frozenset((PARTS, LOCKS, INDEX, temporary_name(RUN_JSON)))
"""What a process leaves that dies before it has written run.json."""
OF_THE_SYSTEM = re.compile(r"\.DS_Store|\._.*|\.nfs[0-9a-f]+|lost\+found|Thumbs\.db|desktop\.ini", re.DOTALL)
"""What macOS, Windows and file systems put into folders without being asked."""


def validate_place(path: Place) -> None:
    """Raises RunError unless a run can be written to the folder `path`, which need not exist; changes nothing."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RunError(f"{str(path)!r} is not UTF-8; give ", Option("out"), " another name.") from None
    with reporting_unreadable(path):
        if path.is_symlink() and not path.exists():
            raise RunError(f"{path} is a link to something that does not exist; give another ", Option("out"), ".")
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, and a run is a folder; give another ", Option("out"), ".")
        names = {file.name for file in path.iterdir()} if path.is_dir() else set[str]()
        foreign = sorted(name for name in names - OF_A_RUN if not OF_THE_SYSTEM.fullmatch(name))
    if not is_run(path):
        validate_no_lost_run(path)
    if foreign and not is_run(path):
        raise RunError(
            f"{path} holds other files, like {foreign[0]}, and is not a run; give ",
            Option("out"),
            " a folder that is new, empty or a run.",
        )
    _validate_writable(path)


def validate_no_lost_run(path: Place) -> None:
    """Raises RunError if the folder `path` has lost its run.json."""
    if any((path / PARTS).glob("*.json")):
        raise RunError(
            f"{path} has parts but no {RUN_JSON}; restore it from a copy, or use another ", Option("out"), "."
        )


def _validate_writable(path: Place) -> None:
    """Raises RunError if files cannot be made in the nearest folder that exists, or in the bucket as a run needs."""
    if isinstance(path, BucketPath):
        require_conditional_writes(path / LOCKS)
        return
    inside = (path / PARTS, path, *path.absolute().parents)
    nearest = next(folder for folder in inside if folder.exists())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error} in {nearest}; give another ",
            Option("out"),
            ", or change its permissions.",
        ) from error

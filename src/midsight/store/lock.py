"""Locks that keep two processes from writing the same shard, and that die with their process."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from midsight.errors import RunError
from midsight.store.layout import LOCKS, Shard, shard_name


def take_lock(path: Path, *, wait: bool = False) -> FileIO:
    """The open file at `path`, locked until it is closed or this process ends.

    Without `wait`, raises RunError that names the holder when another process has it locked.
    """
    file = FileIO(path, "a+")
    # A forked worker shares the lock with its parent and would keep it after the parent's death.
    os.register_at_fork(after_in_child=file.close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise RunError(
            f"The shard {path.stem} of {path.parent.parent} is being written by {_holder(path)}; "
            "wait until it ends, or stop it."
        ) from None
    except OSError as error:
        file.close()
        raise RunError(
            f"{path} cannot be locked: {error.strerror}; choose an --out on a file system that supports flock."
        ) from error
    return file


def sign_lock(file: FileIO) -> None:
    """Write into a held lock file who holds it, for those who find it taken."""
    holder = {"host": platform.node(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    file.truncate(0)
    file.write(json.dumps(holder).encode())


@contextmanager
def hold_shards(path: Path, shards: Iterable[Shard]) -> Iterator[None]:
    """Keep every other process from writing `shards` of the run folder `path`.

    Raises RunError that names the holder when one of them is being written, OSError when the folder
    of locks cannot be made.
    """
    (path / LOCKS).mkdir(exist_ok=True)
    with ExitStack() as held:
        # Together under the lock of starting writers, so that none starts between two of them.
        with take_lock(path / LOCKS / "run.lock", wait=True):
            for shard in sorted(set(shards)):
                sign_lock(held.enter_context(take_lock(path / LOCKS / f"{shard_name(shard)}.lock")))
        yield


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"

"""Locks that keep two processes from writing the same shard; a lock ends with its process."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from midsight.errors import RunError
from midsight.store.files import LOCKS, Shard, shard_name

try:
    import fcntl
except ImportError:  # Windows; runs are read there, and not written
    fcntl = None


def take_lock(path: Path, *, wait: bool = False) -> FileIO:
    """The open file at `path`, locked until it is closed or this process ends.

    Without `wait`, raises RunError that names the holder if another process has it locked. Raises
    RunError on a platform without flock.
    """
    if fcntl is None:
        raise RunError(
            f"{path} cannot be locked because {platform.system()} has no flock; write the run on Linux or macOS."
        )
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
            f"{path} cannot be locked: {error.strerror}; use a folder on a file system that supports flock."
        ) from error
    return file


def sign_lock(file: FileIO) -> None:
    """Write into a held lock file who holds it; the error of other processes quotes that."""
    holder = {"host": platform.node(), "process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    file.truncate(0)
    file.write(json.dumps(holder).encode())


@contextmanager
def hold_shards(path: Path, shards: Iterable[Shard]) -> Iterator[None]:
    """Keep every other process from writing `shards` of the run folder `path`.

    Raises RunError that names the holder if one of them is being written, OSError if the folder of
    locks cannot be made.
    """
    (path / LOCKS).mkdir(exist_ok=True)
    with ExitStack() as held:
        # All under the lock of starting writers, so that no writer starts between two of them.
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

"""Locks that keep two processes from writing the same shard; a lock ends with its process."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from typing import Any

import psutil

from midsight.buckets.path import BucketPath, Place
from midsight.buckets.reading import read_all
from midsight.buckets.trial import require_conditional_writes
from midsight.errors import LockedError, RunError
from midsight.store.files import LOCKS, START_LOCK, Shard, shard_name
from midsight.store.lease import FREE, LEASE_S, Lease, take_lease

try:
    import fcntl
except ImportError:  # Windows; runs are read there, and not written
    fcntl = None


START_WAIT_S = 10.0
"""How long a writer waits for another one that is starting, in seconds."""
Lock = FileIO | Lease
"""What holds a shard until it is closed: a locked file, or a lease in a bucket."""
SHARD_WAIT_S = 2.0
"""How long a writer waits for a shard, in seconds: a process that was told to stop needs a moment."""
LONGEST_COMMAND = 200
"""Characters of a holder's command that an error quotes."""


def take_lock(path: Place, *, wait_s: float | None = None) -> Lock:
    """The open file at `path`, locked until it is closed or this process ends; it says who holds it.

    In a bucket a lease, which ends some time after its process.

    Raises LockedError that names the holder if another process still has it locked after `wait_s` seconds
    (SHARD_WAIT_S by default). Raises RunError on a platform without flock.
    """
    if isinstance(path, BucketPath):
        wait = SHARD_WAIT_S if wait_s is None else wait_s
        return take_lease(path, _this_process(), wait_s=wait, held=lambda content: LockedError(_held(path, content)))
    if fcntl is None:
        raise RunError(
            f"{path} cannot be locked because {platform.system()} has no flock; write the run on Linux or macOS."
        )
    file = FileIO(path, "a+")
    # A forked worker shares the lock with its parent and would keep it after the parent's death.
    os.register_at_fork(after_in_child=file.close)
    deadline = time.monotonic() + (SHARD_WAIT_S if wait_s is None else wait_s)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            file.close()
            raise LockedError(_held(path)) from None
        except OSError as error:
            file.close()
            raise RunError(
                f"{path} cannot be locked: {error.strerror}; use a folder on a file system that supports flock."
            ) from error
        _sign(file)
        return file


@contextmanager
def hold_shards(path: Place, shards: Iterable[Shard]) -> Iterator[None]:
    """Keep every other process from writing `shards` of the run folder `path`.

    Raises RunError that names the holder if one of them is being written, OSError if the folder of
    locks cannot be made.
    """
    make_locks(path)
    with ExitStack() as held:
        # All under the lock of starting writers, so that no writer starts between two of them.
        with take_lock(path / LOCKS / START_LOCK, wait_s=START_WAIT_S):
            for shard in sorted(set(shards)):
                held.enter_context(take_lock(path / LOCKS / f"{shard_name(shard)}.lock"))
        yield


def perhaps_held(locks: Sequence[Place]) -> Sequence[Place]:
    """Those of the locks that somebody may hold; in a bucket they are read many at a time, and not taken."""
    contents = read_all(file for file in locks if isinstance(file, BucketPath))
    return [file for file in locks if contents.get(file.name) != FREE]


def make_locks(path: Place) -> None:
    """Make the folder of locks in the run folder `path`; raises OSError, and RunError for a store that cannot lock."""
    if isinstance(path, BucketPath):
        require_conditional_writes(path / LOCKS)
    else:
        (path / LOCKS).mkdir(parents=True, exist_ok=True)


def was_replaced(path: Place, file: Lock) -> bool:
    """Whether the lock file at `path` is no longer the locked `file`, so that another process may hold it too.

    That happens if a run folder is deleted and started again while its writer lives, and in a bucket if a process was
    stopped for longer than its lease. Raises OSError.
    """
    if isinstance(file, Lease):
        return file.is_lost()
    try:
        there = path.read_bytes()
    except FileNotFoundError:  # nobody has made it again
        return False
    return there != os.pread(file.fileno(), len(there) + 1, 0)


def _held(path: Place, content: bytes | None = None) -> str:
    """One sentence on a lock that another process holds; `content` is what it says, if that was read already."""
    what = "The start of a writer of" if path.name == START_LOCK else f"The shard {path.stem} of"
    does = "is taken" if path.name == START_LOCK else "is being written"
    return f"{what} {path.parent.parent} {does} by {_holder(path, content)}."


def _holder(path: Place, content: bytes | None) -> str:
    """Who holds a lock, and what to do about it."""
    try:
        if content is None:
            with path.open("rb") as file:
                content = file.read(1_000)
        holder = json.loads(content or b"")
        process, host, since = holder["process"], holder["host"], holder["since"]
        if type(process) is int and isinstance(host, str) and isinstance(since, str) and f"{host}{since}".isprintable():
            return f"process {process} on {host} since {since}{_state(process, path)}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return "another process; wait until it ends, or stop it"


def _state(process: int, path: Place) -> str:
    """The command of a process of this machine that has the lock file open, and what to do about the process."""
    if isinstance(path, BucketPath):
        return f"; wait until it ends, or stop it: {LEASE_S:g} seconds later the run is free"
    command, is_stopped = "", False
    with suppress(psutil.Error, OSError, ValueError, OverflowError):
        found = psutil.Process(process)
        if any(path.samefile(opened.path) for opened in found.open_files()):
            is_stopped = found.status() == psutil.STATUS_STOPPED
            command = shlex.join(found.cmdline())
    if len(command) > LONGEST_COMMAND:
        command = f"{command[:LONGEST_COMMAND]} ..."
    said = f" ({command})" if command.isprintable() and command else ""
    if is_stopped:
        return f"{said}, which is stopped; continue it with `kill -CONT {process}`, or end it with `kill -9 {process}`"
    return f"{said}; wait until it ends, or stop it"


def _this_process() -> dict[str, Any]:
    """Who holds a lock; the error of other processes quotes that."""
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "lock": secrets.token_hex(8),  # tells locks apart that processes of one number took in two containers
    }


def _sign(file: FileIO) -> None:
    """Write into a held lock file who holds it."""
    with suppress(OSError):  # a full disk: the lock is held, and only its holder's name is missing
        file.truncate(0)
        file.write(json.dumps(_this_process()).encode())

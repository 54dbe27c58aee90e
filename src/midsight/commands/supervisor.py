"""The light process that starts the worker of an extraction on a GPU, and starts it again if it dies of a sample.

docs/reliability.md has the rules. It never loads torch, so it can fork at any time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from midsight.buckets.path import Place
from midsight.commands.outcome import STOPPED, stopped
from midsight.errors import UnreachableError
from midsight.extraction.stopping import CRASHES, handling_signals, say

if TYPE_CHECKING:
    from midsight.store.files import Shard

GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""Linux: there is a GPU if one of them is."""
MOST_DEATHS = 5
"""Deaths without a commit in between after which the machine is at fault."""
ASK_S = 600.0
"""Time limit of a fork that asks about a file in a bucket, in seconds."""


def needs_supervisor(device: str) -> bool:
    """Whether the option `device` may choose a GPU on this machine, as far as that is known without torch.

    A process that has loaded torch or the client of buckets, such as a test or a notebook that calls the command,
    cannot fork and gets none.
    """
    if "torch" in sys.modules or "obstore" in sys.modules:
        return False
    if device != "auto":
        return device != "cpu"
    return sys.platform == "darwin" or any(file.exists() for file in GPU_FILES)


def become_worker(run: Place, shard: Shard) -> None:
    """Forks; returns in the worker, which extracts. This process starts it again if it dies with samples in work.

    This process passes signals on, and ends with the worker's exit code. If it is killed itself, the worker gets
    SIGTERM and so commits.
    """
    from midsight.store.attempts import note_seen_death, working_path
    from midsight.store.files import shard_name

    working, parts = working_path(run, shard), run / "parts"
    # those of other shards say nothing about this machine
    count_commits = partial(_count, f"{shard_name(shard)}-*.json")
    deaths, committed = 0, None
    while True:
        alive, held = os.pipe()
        before = _ask(working, _state)
        worker = os.fork()
        if worker == 0:
            os.close(held)
            threading.Thread(target=_stop_with_supervisor, args=(alive,), daemon=True).start()
            return
        os.close(alive)
        status, is_stopped = _wait(worker)
        os.close(held)
        code = os.waitstatus_to_exitcode(status)
        left_work = _ask(working, _state) not in (None, before)  # an earlier process may have left the file
        if code >= 0 and not left_work:
            _end(code)
        if is_stopped:
            say(stopped(run))
            _end(STOPPED)
        lost = "lost its device" if isinstance(run, Path) else "lost its device or the network"
        ended = lost if code == STOPPED else f"ended with {_name(code)}"
        if not left_work:
            say(f"Error: The process that extracts {ended} before it had a sample in work; the same command resumes.")
            _end(STOPPED)
        if -code in CRASHES or (code >= 0 and code != STOPPED):
            _ask(working, note_seen_death)
        now = _ask(parts, count_commits)
        if now in (None, committed):  # None: the store did not answer
            deaths += 1
        else:
            deaths, committed = 1, now
        if deaths >= MOST_DEATHS:
            say(
                f"Error: The process that extracts {ended}, {deaths} times without a commit in between, so the machine "
                "may be at fault; check its memory and its GPU, and run the same command again to resume."
            )
            _end(STOPPED)
        say(f"The process that extracts {ended}; it is started again, and tries the samples in work alone.")


def _wait(worker: int) -> tuple[int, bool]:
    """The worker's wait status, and whether a signal told it to stop; passes signals on."""
    stopped = False

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        with suppress(ProcessLookupError):
            os.kill(worker, number)

    with handling_signals(pass_on):
        return os.waitpid(worker, 0)[1], stopped


def _stop_with_supervisor(alive: int) -> None:
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _ask(place: Place, question: Callable[[Any], Any]) -> Any:
    """The answer to `question` about a file or folder, which is None if an error comes, or no answer within ASK_S.

    In a bucket a fork asks, because a process that has used the store's client cannot fork any more: the client's
    threads are not in the fork, which would wait for them for ever.
    """
    if isinstance(place, Path):
        return _answer(place, question)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    asking = os.fork()
    if asking == 0:
        try:
            sender.send(_answer(place, question))
        finally:
            os._exit(0)
    sender.close()
    try:
        return receiver.recv() if receiver.poll(ASK_S) else None
    except EOFError:
        return None
    finally:
        receiver.close()
        os.kill(asking, signal.SIGKILL)
        os.waitpid(asking, 0)


def _answer(place: Place, question: Callable[[Any], Any]) -> Any:
    with suppress(OSError, UnreachableError):
        return question(place)
    return None


def _state(file: Place) -> Any:
    """Changes whenever the file is written; raises OSError if there is none."""
    if isinstance(file, Path):
        status = file.stat()
        return status.st_ino, status.st_mtime_ns
    return {**file.read_with_version()[1]}


def _name(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _count(pattern: str, parts: Place) -> int:
    return sum(1 for _ in parts.glob(pattern))


def _end(code: int) -> None:
    os._exit(code)

"""Programs of strangers, in a process with bounds: chat templates, patterns, rules of tokenizers.

They may take for ever or all memory, and Python cannot interrupt them. So a light process of its own does that work,
and is ended if it takes too much.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, cast

from midsight.memory import memory_of

PROGRAM = Path(__file__).with_name("bounded_program.py")
MOST_MEMORY = 1024**3
"""Bytes that the process may take."""
LONGEST_WAIT_S = 30.0
"""Time for one piece of work on a machine that has other things to do."""
LOOK_EVERY_S = 0.1
"""How often the memory of the process is looked at, for systems that do not limit it."""


class TooMuchError(Exception):
    """Work that took too much time or memory."""

    def __str__(self) -> str:
        return "it takes too much time or memory"


class RaisedError(Exception):
    """What the work itself raised, in its words."""


def do_bounded(work: str, *, seconds: float, **arguments: Any) -> Any:
    """Does a piece of work in the bounded process.

    Args:
        work: Name of the work, one of WORK in bounded_program.py.
        seconds: CPU time that it may take.
        arguments: Its arguments, which JSON can hold.

    Returns:
        Its result.

    Raises:
        TooMuchError: It takes more time or memory.
        RaisedError: It raised.
        OSError: No process can be started.
    """
    answer = _process_of(os.getpid()).do(work, seconds, arguments)
    if "raised" in answer:
        raise RaisedError(answer["raised"])
    if "takes_too_much" in answer:
        raise TooMuchError
    return answer["result"]


class BoundedProcess:
    """The process, which does one piece of work at a time; one that was ended is replaced at the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.end)

    def do(self, work: str, seconds: float, arguments: Any) -> dict[str, Any]:
        """The answer to a piece of work; raises TooMuchError or OSError."""
        request = json.dumps([work, seconds, arguments]).encode() + b"\n"
        with self._lock:
            process = self._running()
            answer = b""
            try:
                answer = self._ask(process, request)
            except BrokenPipeError:  # it has just been ended by others
                pass
            finally:
                if not answer:  # also after Ctrl-C, because its answer would be taken for that to the next work
                    self.end()
        if not answer:
            raise TooMuchError
        return json.loads(answer)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.end()
            settings = json.dumps([MOST_MEMORY, [path for path in sys.path if path]])
            self._process = subprocess.Popen(  # noqa: S603  (our own program; what it gets is data)
                [sys.executable, "-I", "-S", str(PROGRAM), settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for midsight
            )
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        """The line that the process answers; nothing if it ended or takes too much."""
        given, answered = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        given.write(request)
        given.flush()
        latest = time.monotonic() + LONGEST_WAIT_S
        while not wait([answered.fileno()], LOOK_EVERY_S):
            if time.monotonic() > latest or memory_of(process.pid) > MOST_MEMORY:
                return b""
        return answered.readline()

    def end(self) -> None:
        """Ends the process."""
        if self._process is None or os.getpid() != self._owner:
            return
        process, self._process = self._process, None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not yet written is lost, as it should be
                    pipe.close()
        process.wait()


@cache
def _process_of(_pid: int) -> BoundedProcess:
    """The bounded process of this one; a fork gets another, because answers belong to who asked."""
    return BoundedProcess()

"""Standard output and error that may be closed or full at any time, without an effect on the work."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Nobody reads any more: a pipe was closed, or a terminal."""


class ForgivingStream:
    """A text stream that goes on as if written to when its file refuses; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        """`stream` is sys.stdout or sys.stderr."""
        self._stream = stream
        self.problem: OSError | None = None
        """Why the file refused, if it did."""

    def write(self, text: str) -> int:
        """Writes `text`, or drops it."""
        with suppress(OSError) if self.problem else self:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered, or drops it."""
        with suppress(OSError) if self.problem else self:
            self._stream.flush()

    def __enter__(self) -> None:
        """Begins an operation on the file."""

    def __exit__(self, _kind: object, error: object, _trace: object) -> bool:
        """Takes an OSError of the operation, and lets the file be /dev/null from then on."""
        if not isinstance(error, OSError):
            return False
        self.problem = error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)
        return True

    def __getattr__(self, name: str) -> Any:
        """Whatever else the stream has."""
        return getattr(self._stream, name)


def forgive_streams() -> ForgivingStream | None:
    """Makes the standard streams of this process forgiving; returns standard output, None if it was closed before."""
    for file in range(3):
        try:
            os.fstat(file)
        except OSError:  # closed, and the next file that is opened would take its number
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None:
            with suppress(AttributeError, OSError):
                stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
            setattr(sys, name, cast("TextIO", ForgivingStream(stream)))
    return cast("ForgivingStream | None", sys.stdout)


def problem_of(stream: ForgivingStream | None) -> str | None:
    """Why not all output could be written, if somebody waits for it; None if a reader only went away."""
    if stream is None:
        return None
    stream.flush()
    if stream.problem is None or stream.problem.errno in GONE:
        return None
    return stream.problem.strerror

"""Signals that stop a run: everything that is computed is committed at once, and then the process ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from midsight.errors import MidsightError

STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
"""What users and schedulers send to stop a process."""
CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
    if hasattr(signal, name)
)
"""Signals by which a process ends through its own fault; any other may come from outside."""


@dataclass(frozen=True)
class EndNow:
    """A handler that ends the process at once; unlike others it may be called from any thread."""

    exit_code: int
    """The exit code of the process."""
    message: Callable[[], str]
    """Makes the sentence for standard error, when the process ends."""

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Says the message and ends the process."""
        say(self.message())
        os._exit(self.exit_code)


def say(message: str) -> None:
    """Writes a line to standard error, and shows the cursor again, which a progress bar hides."""
    with suppress(OSError, ValueError):  # the terminal may be gone
        cursor = "\x1b[?25h\n" if os.isatty(2) else ""
        os.write(2, f"{cursor}{message}\n".encode(errors="backslashreplace"))


@contextmanager
def handling_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Gives the signals that stop a process this handler, but leaves ignored ones ignored, as `nohup` wants it.

    Handlers of C libraries stay too. Does nothing outside of the main thread, which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(handler, [number for number in STOPPING if signal.getsignal(number) not in (signal.SIG_IGN, None)]):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], numbers: Iterable[int]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, a signal that would end the process calls `stop` first, in a thread of its own.

    The thread does not wait for the call that the main thread is in. Ignored signals stay ignored, and handlers other
    than EndNow stay in place. Does nothing outside of the main thread, which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in STOPPING}
    ours = {number: old for number, old in previous.items() if old is signal.SIG_DFL or isinstance(old, EndNow)}
    reader, sender = os.pipe()
    os.set_blocking(sender, False)
    watcher = threading.Thread(target=_watch, args=(reader, ours, stop), daemon=True, name="midsight-signals")
    watcher.start()
    old_fd = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    try:
        with _handled(_wait_for_the_watcher, ours):
            yield
    finally:
        signal.set_wakeup_fd(old_fd)
        os.close(sender)
        watcher.join()
        os.close(reader)


def _wait_for_the_watcher(number: int, frame: FrameType | None) -> None:
    """The watcher has got the signal through the wakeup file, and ends the process."""


def _watch(reader: int, ours: dict[int, EndNow | int | None], stop: Callable[[], None]) -> None:
    while received := os.read(reader, 1):
        number = received[0]
        if number not in ours:
            continue
        try:
            stop()
        except MidsightError as error:
            say(f"Error: {error}")
        except BaseException as error:  # whatever it is, the process was told to end
            say(f"Error: {type(error).__name__}: {error}")
        ending = ours[number]
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        if isinstance(ending, EndNow):
            ending(number, None)
        os._exit(128 + number)

"""The row of a model of unknown origin, made in a fork of this process with bounds of time and memory.

Sizes in a config, and settings of an image processor, may ask for any amount of both.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from multiprocessing.connection import Connection

from midsight.comparison.rows import ModelRow, describe_model
from midsight.errors import MidsightError
from midsight.memory import memory_of

MOST_SECONDS = 30
"""CPU time that a row may take; ordinary ones take two or three seconds."""
MOST_MEMORY = 4 * 1024**3
"""Bytes that a fork may take more than this process."""
LONGEST_WAIT_S = 600.0
"""Time that it may take with downloads: a fork that waits for a lock of this process's threads would wait for ever."""
LOOK_EVERY_S = 0.1
"""How often the memory of the fork is looked at."""


def describe_bounded(source: str) -> ModelRow:
    """The row of one model, as `describe_model` makes it; raises MidsightError also if it takes too much."""
    if not hasattr(os, "fork"):
        return describe_model(source)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork").Process(target=_send_row, args=(sender, source), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads are not copied, and the fork needs none
        fork.start()
    sender.close()
    most, until = memory_of(os.getpid()) + MOST_MEMORY, time.monotonic() + LONGEST_WAIT_S
    try:
        while not receiver.poll(LOOK_EVERY_S) and memory_of(fork.pid or 0) <= most and time.monotonic() < until:
            pass
        row = receiver.recv() if receiver.poll() else None
    except EOFError:  # it has ended
        row = None
    finally:
        fork.kill()
        fork.join()
        receiver.close()
    if isinstance(row, ModelRow):
        return row
    if row is not None:
        raise MidsightError(*row)
    raise MidsightError(
        f"{source} cannot be described, because its config or image processor asks for too much time or memory; use "
        "config.json and preprocessor_config.json of the published model."
    )


def _send_row(sender: Connection, source: str) -> None:
    """Sends the row, or the parts of the sentence that says why there is none."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 1))
    try:
        sender.send(describe_model(source))
    except MidsightError as error:
        sender.send(error.args)

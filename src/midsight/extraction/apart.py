"""Samples during which processes died, in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from multiprocessing.connection import Connection
from typing import NoReturn

import torch

from midsight.extraction.batch import Outcome, extract_samples
from midsight.extraction.request import Plan
from midsight.models.loading import LoadedModel
from midsight.samples.sample import Failure, Sample

LONGEST_S = 600.0
"""Time after which a sample that is tried apart counts as deadly."""


def killed(sample: Sample) -> Failure:
    """What is recorded of a sample during which two processes died."""
    reason = (
        "Two processes died while they worked on this sample, so it was set aside; if something else ended them, try "
        "it again with --retry-failed."
    )
    return Failure(sample.sample_id, sample.input_index, reason)


def extract_apart(model: LoadedModel, plan: Plan, sample: Sample, *, longest_s: float = LONGEST_S) -> Outcome | None:
    """The sample's outcome from a child process; None where the child dies, takes too long, or cannot be had.

    It tells a sample that kills from one that was in work when something else killed. The child is a copy
    of this process, which only a CPU's memory allows.
    """
    if model.device.type != "cpu" or not hasattr(os, "fork"):
        return None
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads are not copied, and the child needs none
        child = os.fork()
    if child == 0:
        _extract_into(sender, model, plan, sample)
    sender.close()
    try:
        return receiver.recv() if receiver.poll(longest_s) else None
    except EOFError:
        return None
    finally:
        receiver.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _extract_into(sender: Connection, model: LoadedModel, plan: Plan, sample: Sample) -> NoReturn:
    """Ends the process without a return: all that it is a copy of belongs to its parent."""
    try:
        torch.set_num_threads(1)
        sender.send(extract_samples(model, plan, [sample])[0])
    finally:
        os._exit(0)

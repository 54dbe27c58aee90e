"""Samples during which processes died, extracted in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from multiprocessing.connection import Connection
from typing import NoReturn

import torch

from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.extract_call import Outcome, extract_samples
from midsight.extraction.request import ResolvedRequest
from midsight.samples.sample import Failure, Sample

TIMEOUT_S = 600.0
"""Time after which a sample in isolation counts as one that kills."""


def killed(sample: Sample) -> Failure:
    """The failure of a sample during which two processes died."""
    reason = (
        "Two processes died while they worked on this sample, so it was set aside; if something else ended them, try "
        "it again with the option retry_failed."
    )
    return Failure(sample.sample_id, sample.input_index, reason)


def extract_isolated(
    model: LoadedModel, request: ResolvedRequest, sample: Sample, *, timeout_s: float = TIMEOUT_S
) -> Outcome | None:
    """The sample's outcome from a child process; None if the child dies or takes too long, or none can be made.

    This tells a sample that kills from one that was in work when something else killed the process. The child is a
    copy of this process, so it only works for a model on the CPU.
    """
    if model.device.type != "cpu" or not hasattr(os, "fork"):
        return None
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads are not copied, and the child needs none
        child = os.fork()
    if child == 0:
        _extract_into(sender, model, request, sample)
    sender.close()
    try:
        return receiver.recv() if receiver.poll(timeout_s) else None
    except EOFError:
        return None
    finally:
        receiver.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _extract_into(sender: Connection, model: LoadedModel, request: ResolvedRequest, sample: Sample) -> NoReturn:
    """Sends the outcome and ends the process without a return: everything else in it belongs to the parent."""
    try:
        torch.set_num_threads(1)
        sender.send(extract_samples(model, request, [sample])[0])
    finally:
        os._exit(0)

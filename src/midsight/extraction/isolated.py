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
"""Time limit of an isolated sample, in seconds; a slower one stays failed."""


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
    """The sample's outcome from a child process; None if the child dies, is too slow, or cannot be started.

    This shows whether the sample kills its process, or whether something else killed the earlier ones. The child is a
    fork of this process, so it works only for a model on the CPU.
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
    """Sends the outcome and ends the child at once, because everything else in its memory belongs to the parent."""
    try:
        torch.set_num_threads(1)
        sender.send(extract_samples(model, request, [sample])[0])
    finally:
        os._exit(0)

"""Samples during which processes died, in a process of their own."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from multiprocessing.connection import Connection

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
    if model.device.type != "cpu" or sys.platform == "win32":
        return None
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_extract_into, args=(sender, model, plan, sample), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads are not copied, and the child needs none
        child.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(longest_s) else None
    except EOFError:
        return None
    finally:
        child.kill()
        child.join()


def _extract_into(sender: Connection, model: LoadedModel, plan: Plan, sample: Sample) -> None:
    torch.set_num_threads(1)
    sender.send(extract_samples(model, plan, [sample])[0])

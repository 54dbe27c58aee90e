"""Suspects: samples that were in work when a process died. Each is tried alone, in a fork if that is possible.

docs/reliability.md has the rules.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import NoReturn

import torch
from PIL import Image

from midsight.checkpoints.loading import LoadedModel
from midsight.errors import SampleError
from midsight.extraction.extract_call import Outcome, extract_samples
from midsight.extraction.request import ResolvedRequest
from midsight.extraction.stopping import CRASHES, STOPPING
from midsight.samples.images import Note, say_nothing, without_bucket
from midsight.samples.sample import Failure, Sample
from midsight.store.attempts import Attempts

TIMEOUT_S = 600.0
"""Time limit of a fork, in seconds; a slower sample is tried in this process."""


@dataclass(frozen=True)
class Death:
    """How a fork ended that left no outcome."""

    by_itself: bool
    """Whether it crashed; otherwise something else may have killed it."""


def set_aside(sample: Sample) -> Failure:
    """The failure of a sample that killed its process, as far as anybody can know."""
    reason = (
        "The sample was set aside, because a process died each time it was alone in work; the next start tries it once "
        "more, later ones only with the option retry_failed."
    )
    return Failure(sample.sample_id, sample.input_index, reason)


def try_alone(
    model: LoadedModel, request: ResolvedRequest, sample: Sample, attempts: Attempts, note: Note = say_nothing
) -> Outcome:
    """The sample's outcome, tried alone; its deaths are counted, and enough of them set it aside.

    `note` is told of images that come out nearly black.
    """
    try:
        sample = replace(sample, images=tuple(map(without_bucket, sample.images)))
    except SampleError as error:
        return Failure(sample.sample_id, sample.input_index, str(error))
    while can_fork(model):
        with attempts.working_on([sample.sample_id], alone=True):
            ended = extract_in_fork(model, request, sample, note)
        if ended is None:
            break
        if not isinstance(ended, Death):
            return ended
        if ended.by_itself and not forks_work(model, request):
            break
        attempts.count_death(sample.sample_id, by_itself=ended.by_itself)
        if attempts.is_set_aside(sample.sample_id):
            return set_aside(sample)
    with attempts.working_on([sample.sample_id], alone=True):
        return extract_samples(model, request, [sample], note=note)[0]


def can_fork(model: LoadedModel) -> bool:
    """Whether a fork of this process can use the model: not on a GPU."""
    return model.device.type == "cpu" and hasattr(os, "fork")


def forks_work(model: LoadedModel, request: ResolvedRequest) -> bool:
    """Whether a harmless sample survives a fork."""
    control = Sample("control", 0, (Image.new("RGB", (64, 64)),), "", "What is this?")
    return not isinstance(extract_in_fork(model, request, control), Death)


def extract_in_fork(
    model: LoadedModel,
    request: ResolvedRequest,
    sample: Sample,
    note: Note = say_nothing,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Outcome | Death | None:
    """The sample's outcome from a fork of this process, or how the fork died; None if it is too slow or raises.

    `note` gets here what the fork has to say about images.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    parent_lives, held_by_parent = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads are not copied, and the child needs none
        child = os.fork()
    if child == 0:
        os.close(held_by_parent)
        _extract_into(sender, parent_lives, model, request, sample)
    sender.close()
    os.close(parent_lives)
    exit_status = None
    try:
        outcome, sentences = receiver.recv() if receiver.poll(timeout_s) else (None, [])
    except (EOFError, OSError):  # OSError: it died while it sent its outcome
        _, exit_status = os.waitpid(child, 0)
        number = os.waitstatus_to_exitcode(exit_status)
        return Death(by_itself=number > 0 or -number in CRASHES)
    finally:
        receiver.close()
        os.close(held_by_parent)
        if exit_status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    for sentence in sentences:
        note(sentence)
    return outcome


def _extract_into(
    sender: Connection, parent_lives: int, model: LoadedModel, request: ResolvedRequest, sample: Sample
) -> NoReturn:
    """Sends the outcome and ends the child at once, because everything else in its memory belongs to the parent."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in STOPPING:  # they are for the parent, also if the whole process group gets them
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent_lives,), daemon=True).start()
    with suppress(BaseException):
        torch.set_num_threads(1)
        sentences: list[str] = []
        sender.send((_outcome(model, request, sample, sentences.append), sentences))
    os._exit(0)


def _outcome(model: LoadedModel, request: ResolvedRequest, sample: Sample, note: Note) -> Outcome | None:
    try:
        return extract_samples(model, request, [sample], note=note)[0]
    except Exception:  # it is raised again where the parent tries the sample itself
        return None


def _end_with_parent(parent_lives: int) -> None:
    os.read(parent_lives, 1)
    os._exit(1)

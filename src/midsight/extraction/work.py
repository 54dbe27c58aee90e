"""What is left to do in a run, known before the model is open: torch is not imported."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from midsight.buckets.path import Place, to_place
from midsight.errors import Option
from midsight.extraction.task import Task
from midsight.extraction.todo import Progress, Todo, choose
from midsight.prompts.user_text import describe_unused_columns
from midsight.reports.terminal import describe_renamed
from midsight.samples.missing import MissingImages, find_missing
from midsight.samples.packed import images_at
from midsight.samples.sample import ImageSource
from midsight.samples.tables import Dataset
from midsight.store.files import free_bytes
from midsight.store.schema import extra_columns, renamed_columns
from midsight.store.writer import samples_done


@dataclass(frozen=True)
class Work:
    """What a call has to do, and what a user should know about its data."""

    done: tuple[int, int]
    """The fingerprint of the ids of the samples that need no more work."""
    todo: Todo
    """The work that is left."""
    extras: Collection[str]
    """The extra input columns."""
    about_data: Sequence[str]
    """How the data were read, one sentence each."""
    missing: MissingImages | None
    """The image files that do not exist; None if all do."""

    @property
    def notes(self) -> tuple[Sequence[str | Option], ...]:
        """What a user should know about the data, as the parts of sentences."""
        renamed = renamed_columns(extra_columns(self.extras))
        sentences = [*self.about_data, *([f"{describe_renamed(renamed)}."] if renamed else [])]
        notes = [(f"Note: {sentence}",) for sentence in sentences]
        return (*notes, *([self.missing.describe()] if self.missing else []))


def find_work(task: Task) -> Work:
    """What is left of a task whose run, if it is there, is of the same call; writes nothing."""
    done, failed = samples_done(task.out, shard=task.shard, retry_failed=task.retry_failed)
    todo = todo_of(task, done, failed)
    images = itertools.chain.from_iterable(images_of(task, todo.first_of_image))
    missing = find_missing(images, folder_of_images(task.data))
    about_data = (*task.data.notes, *describe_unused_columns(task.request.prompt, task.data.extras))
    return Work(fingerprint(done), todo, task.data.extras, about_data, missing)


def notes_of(task: Task, work: Work) -> tuple[Sequence[str | Option], ...]:
    """What a user should know about the data and their risks, as the parts of sentences."""
    risk = task.request.risk
    return (*work.notes, *((f"Note: {sentence}",) for sentence in (risk.notes(task.data.sha256) if risk else ())))


def todo_of(task: Task, done: Collection[str], failed: Collection[str]) -> Todo:
    """The work that is left after the samples with the ids `done`, of which those in `failed` have failed."""
    return choose(task.data, done, failed, shard=task.shard, limit=task.limit)


def progress_before(todo: Todo, out: Place, estimated_bytes: int | None) -> Progress:
    """The progress of the run in the folder `out` before `todo`, which will take so many bytes."""
    return Progress(
        samples=todo.samples,
        images=todo.images,
        already=todo.already,
        already_failed=todo.already_failed,
        done=0,
        failed=0,
        estimated_bytes=estimated_bytes,
        free_bytes=free_bytes(out),
    )


def images_of(task: Task, order: np.ndarray) -> Iterator[tuple[ImageSource, ...]]:
    """The images of each of the samples with these indices."""
    samples = task.data.samples if isinstance(task.data, Dataset) else ()
    return (images_at(samples, index) for index in order.tolist())


def fingerprint(ids: Collection[str]) -> tuple[int, int]:
    """Equal for equal sets of ids, in this process; a set of ten million ids would take a gigabyte until it is used."""
    return len(ids), sum(map(hash, ids))


def folder_of_images(data: object) -> Place:
    """The folder that image paths start from."""
    if not isinstance(data, Dataset):
        return Path()
    if isinstance(images := data.options["images"], str):
        return to_place(images)
    if data.path is None:
        return Path()
    return data.path if data.path.is_dir() else data.path.parent

"""A call of extract with its model: what the run holds, what is left to do, and whether it can start."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from midsight.checkpoints.loading import LoadedModel, add_weights
from midsight.errors import AllFailedError, MidsightError, Option
from midsight.extraction.describe import describe_model, describe_run
from midsight.extraction.request import ResolvedRequest, resolve
from midsight.extraction.task import Task
from midsight.extraction.todo import Progress, Todo, choose, estimate_bytes
from midsight.prompts.user_text import describe_unused_columns
from midsight.reports.reasons import describe_reasons
from midsight.reports.terminal import describe_renamed
from midsight.samples.columns import prompt_columns
from midsight.samples.missing import MissingImages, does_not_exist, find_missing
from midsight.samples.packed import images_at
from midsight.samples.sample import Failure, ImageSource
from midsight.samples.tables import Dataset
from midsight.store.files import free_bytes
from midsight.store.schema import extra_columns, renamed_columns
from midsight.store.spec import RunSpec
from midsight.store.writer import samples_done

FIRST_SAMPLES = 100
"""If this many samples fail at the start and none is extracted, the run stops."""


@dataclass(frozen=True)
class Job:
    """What one call of extract does."""

    task: Task
    """What the call asks for."""
    model: LoadedModel
    """The model that extracts the samples; its weights may come later."""
    request: ResolvedRequest
    """What is extracted from every sample."""
    spec: RunSpec
    """What run.json holds."""

    def todo(self, done: Collection[str], failed: Collection[str]) -> Todo:
        """The work that is left after the samples with the ids `done`, of which those in `failed` have failed."""
        return choose(self.task.data, done, failed, shard=self.task.shard, limit=self.task.limit)

    def before(self, todo: Todo) -> Progress:
        """The progress of the run before `todo`; raises MidsightError if `todo` does not fit on its disk."""
        size = None
        if todo.remaining is not None and todo.remaining_images is not None:
            size = estimate_bytes(
                self.model, self.request, self.task.store_dtype, samples=todo.remaining, images=todo.remaining_images
            )
        progress = Progress(
            samples=todo.samples,
            images=todo.images,
            already=todo.already,
            already_failed=todo.already_failed,
            done=0,
            failed=0,
            estimated_bytes=size,
            free_bytes=free_bytes(self.task.out),
        )
        if size is not None and size > progress.free_bytes:
            raise MidsightError(
                f"{self.task.out} will take about {decimal(size)} more and its disk has "
                f"{decimal(progress.free_bytes)} free; free some, choose another ",
                Option("out"),
                ", fewer ",
                Option("layers"),
                ", or ",
                Option("store_dtype", "float16"),
                ".",
            )
        return progress

    def images(self, order: np.ndarray) -> Iterator[tuple[ImageSource, ...]]:
        """The images of each of the samples with these indices."""
        samples = self.task.data.samples if isinstance(self.task.data, Dataset) else ()
        return (images_at(samples, index) for index in order.tolist())

    def with_weights(self) -> Job:
        """The same job with its model in memory; raises MidsightError."""
        model = add_weights(self.model)
        return replace(self, model=model, spec=replace(self.spec, model=describe_model(model)))


@dataclass(frozen=True)
class Start:
    """What is known before a job starts."""

    done: tuple[int, int]
    """The fingerprint of the ids of the samples that need no more work."""
    todo: Todo
    """The work that is left."""
    progress: Progress
    """The progress of the run."""
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


def make_job(task: Task, model: LoadedModel) -> Job:
    """A task for one model, which may have no weights yet; raises MidsightError."""
    resolved = resolve(task.request, model, prompt_columns(task.data.extras, task.data.options))
    spec = describe_run(task.data, model, task.request, resolved, task.store_dtype)
    return Job(task, model, resolved, spec)


def look_ahead(job: Job) -> Start:
    """What the job will do; writes nothing.

    Raises MidsightError if the run was started with other options, or if the rest of it does not fit on its disk.
    """
    task = job.task
    done, failed = samples_done(task.out, job.spec, shard=task.shard, retry_failed=task.retry_failed)
    todo = job.todo(done, failed)
    progress = job.before(todo)
    images = itertools.chain.from_iterable(job.images(todo.first_of_image))
    missing = find_missing(images, folder_of_images(task.data))
    about_data = (*task.data.notes, *describe_unused_columns(task.request.prompt, task.data.extras))
    return Start(fingerprint(done), todo, progress, task.data.extras, about_data, missing)


def fingerprint(ids: Collection[str]) -> tuple[int, int]:
    """Equal for equal sets of ids, in this process; a set of ten million ids would take a gigabyte until it is used."""
    return len(ids), sum(map(hash, ids))


def folder_of_images(data: object) -> Path:
    """The folder that image paths start from."""
    if not isinstance(data, Dataset):
        return Path()
    if isinstance(images := data.options["images"], str):
        return Path(images)
    if data.path is None:
        return Path()
    return data.path if data.path.is_dir() else data.path.parent


def require_a_chance(job: Job, start: Start) -> None:
    """Raises AllFailedError if a run without rows would stop at its start because its first samples all fail."""
    stored = start.progress.already - start.progress.already_failed
    if stored:
        return
    if start.todo.remaining == 0 and len(start.todo.unusable) >= FIRST_SAMPLES:
        raise all_failed(start.todo.unusable, recorded=False)
    if start.missing is None or len(start.todo.order) < FIRST_SAMPLES:
        return
    first = job.images(start.todo.order[:FIRST_SAMPLES])
    if all(any(isinstance(image, Path) and does_not_exist(image) for image in images) for images in first):
        raise AllFailedError(
            *start.missing.describe(),
            f" None of the first {FIRST_SAMPLES} samples has its image, so nothing was started; correct ",
            Option("images"),
            ", or go on with ",
            Option("keep_going", True),
            ".",
        )


def all_failed(failures: Collection[Failure], *, recorded: bool) -> AllFailedError:
    """The error for a start at which every sample fails; `recorded` if the run holds the failures."""
    again = (", then add ", Option("retry_failed", True)) if recorded else ()
    return AllFailedError(
        f"The first {len(failures):,} samples all failed: {describe_reasons([*failures])}. Correct that",
        *again,
        ", or go on with ",
        Option("keep_going", True),
        ".",
    )

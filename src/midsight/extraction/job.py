"""A call of extract with its model: what the run holds, what is left to do, and whether it can start."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.filesize import decimal

from midsight.checkpoints.loading import LoadedModel, add_weights
from midsight.errors import AllFailedError, MidsightError, Option
from midsight.extraction.describe import describe_model, describe_run
from midsight.extraction.disk_size import estimate_bytes
from midsight.extraction.request import ResolvedRequest, resolve
from midsight.extraction.task import Task
from midsight.extraction.todo import Progress, Todo
from midsight.extraction.work import Work, find_work, images_of, progress_before
from midsight.reports.reasons import describe_reasons
from midsight.samples.columns import ColumnSource, prompt_columns
from midsight.samples.missing import does_not_exist
from midsight.samples.sample import Failure
from midsight.store.same_spec import require_same_run
from midsight.store.spec import RunSpec, is_run, read_spec

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

    def before(self, todo: Todo) -> Progress:
        """The progress of the run before `todo`; raises MidsightError if `todo` does not fit on its disk."""
        size = None
        if todo.remaining is not None and todo.remaining_images is not None:
            size = estimate_bytes(
                self.model, self.request, self.task.store_dtype, samples=todo.remaining, images=todo.remaining_images
            )
        progress = progress_before(todo, self.task.out, size)
        if size is not None and progress.free_bytes is not None and size > progress.free_bytes:
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

    def as_started(self, run: RunSpec) -> Job:
        """The same job with prompts that tell the time of the run's first start, which may have been on another day."""
        if run.prompt.time == self.spec.prompt.time:
            return self
        prompt = resolve(self.task.request, self.model, columns_of(self.task), run.prompt.time).prompt
        return replace(self, request=replace(self.request, prompt=prompt), spec=replace(self.spec, prompt=run.prompt))

    def with_weights(self) -> Job:
        """The same job with its model in memory; raises MidsightError."""
        model = add_weights(self.model)
        return replace(self, model=model, spec=replace(self.spec, model=describe_model(model)))


@dataclass(frozen=True)
class Start:
    """What is known before a job starts."""

    work: Work
    """What is left to do."""
    progress: Progress
    """The progress of the run."""


def make_job(task: Task, model: LoadedModel) -> Job:
    """A task for one model, which may have no weights yet; raises MidsightError."""
    resolved = resolve(task.request, model, columns_of(task))
    spec = describe_run(task.data, model, task.request, resolved, task.store_dtype)
    return Job(task, model, resolved, spec)


def columns_of(task: Task) -> Mapping[str, ColumnSource]:
    """The columns of a task's data that its prompts may use."""
    return prompt_columns(task.data.extras, task.data.options)


def look_ahead(job: Job, work: Work | None = None) -> Start:
    """What the job will do; writes nothing. `work` is what is left of its task, if that is known.

    Raises MidsightError if the run was started with other options, or if the rest of it does not fit on its disk.
    """
    out = job.task.out
    if is_run(out):
        require_same_run(out, read_spec(out), job.spec)
    work = work or find_work(job.task)
    return Start(work, job.before(work.todo))


def require_a_chance(job: Job, start: Start) -> None:
    """Raises AllFailedError if a run without rows would stop at its start because its first samples all fail."""
    stored = start.progress.already - start.progress.already_failed
    if stored:
        return
    todo, missing = start.work.todo, start.work.missing
    if todo.remaining == 0 and len(todo.unusable) >= FIRST_SAMPLES:
        raise all_failed(todo.unusable, recorded=False)
    if missing is None or len(todo.order) < FIRST_SAMPLES:
        return
    first = images_of(job.task, todo.order[:FIRST_SAMPLES])
    if all(any(isinstance(image, Path) and does_not_exist(image) for image in images) for images in first):
        raise AllFailedError(
            *missing.describe(),
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

"""A finished run, opened without its model: torch is not imported."""

from __future__ import annotations

from midsight.analysis import Run, open_run
from midsight.extraction.display import Display
from midsight.extraction.task import Task
from midsight.extraction.work import Work, find_work, notes_of, progress_before


def work_of_own_run(task: Task) -> Work | None:
    """What is left of a run that is known to be of this call; None if that is known only when the model is open."""
    return find_work(task) if task.continues else None


def open_finished(task: Task, work: Work, shown: Display) -> Run:
    """Says that there is nothing to do, and opens the run."""
    progress = progress_before(work.todo, task.out, estimated_bytes=0)
    shown.start(progress, notes_of(task, work))
    shown.progress(progress)
    return open_run(task.out)

"""Does a job: what is left of it goes through the model into its run."""

from __future__ import annotations

from collections.abc import Iterator

from midsight.analysis import Run, open_run
from midsight.extraction.budget import make_budget
from midsight.extraction.display import Display
from midsight.extraction.fill import fill
from midsight.extraction.job import Job, look_ahead, require_a_chance
from midsight.extraction.needs import estimate_needs
from midsight.extraction.task import BatchSize, validate_batch_size, validate_commit_seconds
from midsight.extraction.work import Work, fingerprint, notes_of, todo_of
from midsight.reports.abstention import describe_abstention
from midsight.samples.streams import SampleStream
from midsight.store.spec import is_run
from midsight.store.writer import RunWriter


def run_job(
    job: Job,
    work: Work | None = None,
    *,
    batch_size: BatchSize,
    keep_going: bool,
    commit_seconds: float,
    shown: Display,
) -> Run:
    """Does a job, and returns its run; a finished run is opened at once, without weights. Raises MidsightError.

    `work` is what is left of it, if that is known.
    """
    validate_batch_size(batch_size)
    validate_commit_seconds(commit_seconds)
    task = job.task
    start = look_ahead(job, work)
    todo = start.work.todo
    shown.start(start.progress, notes_of(task, start.work))
    if todo.is_empty and is_run(task.out):
        shown.progress(start.progress)
        return open_run(task.out)
    if not keep_going:
        require_a_chance(job, start)
    # a shard without samples that is the first to start writes run.json too, which says what was found at load
    if (todo.remaining != 0 or todo.is_empty) and not job.model.has_weights:
        job = shown.loading(job.model, job.with_weights)
    needs = estimate_needs(job.model.config, job.model.dtype, logits=job.request.reads_first_token)
    budget = make_budget(batch_size, job.model.device, needs)
    with RunWriter(
        task.out, job.spec, shard=task.shard, retry_failed=task.retry_failed, commit_seconds=commit_seconds
    ) as writer:
        job = job.as_started(writer.spec)
        # another process may have done this shard in the meantime
        if fingerprint(writer.done) != start.work.done:
            todo = todo_of(task, writer.done, writer.failed)
        try:
            fill(
                writer,
                job,
                todo,
                budget=budget,
                keep_going=keep_going,
                on_progress=shown.progress,
                note=shown.note,
                say=shown.say,
            )
        finally:
            shown.end(task.data.notes_of_rows() if isinstance(task.data, SampleStream) else ())
    run = open_run(task.out)
    for sentence in tell_abstention(run, job):
        shown.say(sentence)
    return run


def tell_abstention(run: Run, job: Job) -> Iterator[str]:
    """What leaving out risky answers did, in sentences; none if no answer could be left out."""
    choice, risk = job.task.request.risk, job.request.risk
    if choice and risk:
        yield from describe_abstention(run, risk.decoding, choice.probe.facts)

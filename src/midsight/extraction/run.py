"""The main job: a dataset through a model into a run folder, resumed from its last commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from midsight.analysis import Run, open_run
from midsight.errors import SampleError
from midsight.extraction.budget import BatchSize, Budget, make_budget
from midsight.extraction.extract_call import Outcome, extract_samples
from midsight.extraction.isolated import extract_isolated, killed
from midsight.extraction.job import ExtractKeywords, Job, make_job
from midsight.extraction.model import Model
from midsight.extraction.pipeline import extract_all, map_in_background
from midsight.extraction.todo import Progress, Todo
from midsight.records import Record
from midsight.samples.open import Data
from midsight.samples.sample import Failure, Sample, SampleOrFailure
from midsight.store.attempts import DEADLY
from midsight.store.files import Shard
from midsight.store.schema import StoreDtype
from midsight.store.spec import is_run
from midsight.store.writer import RunWriter


def extract(
    data: Data,
    *,
    model: Model | str | Path,
    out: str | Path,
    batch_size: BatchSize = "auto",
    store_dtype: StoreDtype = "float32",
    limit: int | None = None,
    shard: Shard = (0, 1),
    retry_failed: bool = False,
    commit_seconds: float = 60.0,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **options: Unpack[ExtractKeywords],
) -> Run:
    """Extracts a whole dataset into the run folder `out` and opens it.

    If `out` is a run, it resumes from its last commit; options that would make other rows are refused. A sample
    that cannot be extracted becomes one of the run's failures, and the others continue.

    Args:
        data: A table file, Parquet shards, a saved Hugging Face dataset, an `hf://` name, a folder of images,
            (image, question) pairs, or Samples.
        model: A loaded model, or its folder or hub id.
        out: The run folder; it is made if it does not exist.
        batch_size: Maximum number of samples in one call of the model; `auto` measures what memory holds.
        store_dtype: `float32` or `float16`, for the stored vectors.
        limit: Process only the first `limit` rows.
        shard: (I, N) does shard I of N, from 0; several processes may fill one run, each with its own shard.
        retry_failed: Try samples that failed before again.
        commit_seconds: Maximum time between two commits, in seconds.
        on_progress: Called with the progress, at the start and after every call of the model.
        **options: The fields of DatasetOptions (columns, images, split, ...) and of Request (layers, positions,
            prompt, ...), each documented there.

    Returns:
        The opened run.

    Raises:
        MidsightError: A call that cannot be carried out; the sentence names the argument and a remedy.
    """
    job = make_job(
        data,
        model=model,
        store_dtype=store_dtype,
        limit=limit,
        shard=shard,
        retry_failed=retry_failed,
        **options,
    )
    budget = make_budget(batch_size, job.model.device)
    out = Path(out)
    todo = None
    if not is_run(out):  # nothing is written if the whole run cannot fit
        todo = job.todo(())
        job.before(todo, out)
    with RunWriter(out, job.spec, shard=shard, retry_failed=retry_failed, commit_seconds=commit_seconds) as writer:
        fill(writer, job, todo or job.todo(writer.done), budget=budget, on_progress=on_progress)
    return open_run(out)


def fill(writer: RunWriter, job: Job, todo: Todo, *, budget: Budget, on_progress: Callable[[Progress], None]) -> None:
    """Extracts what is to do, and stores finished samples while the next ones are in the model.

    Samples that were in progress when one process died come last, one by one. Those that were in progress when two
    died are recorded as failed, and then tried once more in isolation.
    """
    progress = job.before(todo, writer.path)
    on_progress(progress)
    suspects: list[Sample] = []
    set_aside: list[Sample] = []

    def count(done: Sequence[bool]) -> None:
        nonlocal progress
        progress = replace(progress, done=progress.done + sum(done), failed=progress.failed + len(done) - sum(done))
        on_progress(progress)

    def store_all(outcomes: Iterable[Outcome]) -> list[bool]:
        done = {outcome.sample_id: store(writer, outcome) for outcome in outcomes}
        writer.attempts.clear(done)
        return list(done.values())

    def unsuspected(rows: Iterable[SampleOrFailure]) -> Iterator[SampleOrFailure]:
        for row in rows:
            deaths = 0 if isinstance(row, Failure) else writer.attempts.deaths(row.sample_id)
            if isinstance(row, Failure) or deaths == 0:
                yield row
            else:
                (suspects if deaths < DEADLY else set_aside).append(row)

    calls = extract_all(job.model, job.request, unsuspected(todo.rows), budget, writer.attempts.working_on)
    with closing(calls), closing(map_in_background(store_all, calls)) as results:
        for done in results:
            count(done)
    writer.commit()  # the next sample may end the process
    for sample in suspects:
        with writer.attempts.working_on([sample.sample_id]):
            outcomes = extract_samples(job.model, job.request, [sample])
        count(store_all(outcomes))
    if set_aside:
        count([store(writer, killed(sample)) for sample in set_aside])
        writer.commit()
        writer.attempts.clear([sample.sample_id for sample in set_aside])
    for sample in set_aside:
        outcome = extract_isolated(job.model, job.request, sample)
        if isinstance(outcome, Record) and store(writer, outcome):
            progress = replace(progress, done=progress.done + 1, failed=progress.failed - 1)
            on_progress(progress)


def store(writer: RunWriter, outcome: Outcome) -> bool:
    """Stores an outcome; returns True for a row, False for a failure.

    A record with values that the run cannot hold becomes a failure.
    """
    if isinstance(outcome, Failure):
        writer.fail(outcome)
        return False
    try:
        writer.add(outcome)
    except SampleError as error:
        writer.fail(Failure(outcome.sample_id, outcome.input_index, str(error)))
        return False
    return True

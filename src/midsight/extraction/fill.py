"""The loop of a run: what is to do goes through the model into the run folder, suspects last and alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from midsight.errors import SampleError
from midsight.extraction.budget import Budget
from midsight.extraction.extract_call import Outcome
from midsight.extraction.isolated import can_fork, set_aside, try_alone
from midsight.extraction.job import Job
from midsight.extraction.pipeline import extract_all, map_in_background
from midsight.extraction.stopping import stopping_on_signals
from midsight.extraction.todo import Progress, Todo
from midsight.samples.sample import Failure, Sample, SampleOrFailure
from midsight.store.attempts import Attempts
from midsight.store.writer import RunWriter


@dataclass
class _Results:
    """Outcomes on their way from the model into the run. A signal finds every one that is computed."""

    writer: RunWriter
    """The run."""
    waiting: deque[Outcome] = field(default_factory=deque)
    """Computed, and not stored yet."""

    def store_waiting(self, _: object = None) -> list[bool]:
        """Stores what waits; True for a row, False for a failure."""
        stored: list[bool] = []
        with self.writer.lock:
            while self.waiting:
                outcome = self.waiting.popleft()
                stored.append(store(self.writer, outcome))
                if not _is_verdict(self.writer.attempts, outcome):
                    self.writer.attempts.clear([outcome.sample_id])
        return stored

    def stop(self) -> None:
        """Commits everything that is computed, and lets nothing be stored after that."""
        self.writer.lock.acquire()  # never released, because the process ends
        try:
            self.commit()
        finally:
            self.writer.attempts.end()

    def commit(self) -> None:
        """Commits everything that is computed."""
        self.store_waiting()
        self.writer.commit()


def fill(writer: RunWriter, job: Job, todo: Todo, *, budget: Budget, on_progress: Callable[[Progress], None]) -> None:
    """Extracts what is to do, and stores finished samples while the next ones are in the model.

    Samples that were in work when a process died come last, and alone. Signals commit what is computed, and end the
    process.
    """
    progress = job.before(todo, writer.path)
    on_progress(progress)
    results = _Results(writer)
    suspects: list[Sample] = []

    def count(stored: Sequence[bool]) -> None:
        nonlocal progress
        rows = sum(stored)
        progress = replace(progress, done=progress.done + rows, failed=progress.failed + len(stored) - rows)
        on_progress(progress)

    def unsuspected(rows: Iterable[SampleOrFailure]) -> Iterator[SampleOrFailure]:
        for row in rows:
            if isinstance(row, Sample) and writer.attempts.is_suspect(row.sample_id):
                suspects.append(row)
            else:
                yield row

    calls = extract_all(job.model, job.request, unsuspected(todo.rows), budget, writer.attempts.working_on)
    with stopping_on_signals(results.stop):
        try:
            collected = collect(calls, results.waiting)
            with closing(calls), closing(map_in_background(results.store_waiting, collected)) as stored:
                for outcomes in stored:
                    count(outcomes)
            if suspects:
                writer.commit()
            for sample in suspects:
                results.waiting.append(judge(writer, job, sample))
                count(results.store_waiting())
        finally:
            results.commit()


def collect(calls: Iterable[list[Outcome]], waiting: deque[Outcome]) -> Iterator[None]:
    """Adds the outcomes of each call to `waiting` as soon as they are computed."""
    for outcomes in calls:
        waiting.extend(outcomes)
        yield


def judge(writer: RunWriter, job: Job, sample: Sample) -> Outcome:
    """The outcome of a suspect: tried alone, or set aside if enough processes died of it."""
    attempts, sample_id = writer.attempts, sample.sample_id
    is_recorded = sample_id in writer.failed
    if attempts.is_set_aside(sample_id):
        if not is_recorded or sample_id in attempts.died_last:
            return set_aside(sample)
        attempts.try_again(sample_id)
    if not can_fork(job.model):
        writer.commit()  # the sample may end this process
    return try_alone(job.model, job.request, sample, attempts)


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


def _is_verdict(attempts: Attempts, outcome: Outcome) -> bool:
    """Whether the outcome says that the sample was set aside, which the next start has to know."""
    return isinstance(outcome, Failure) and attempts.is_set_aside(outcome.sample_id)

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
from midsight.extraction.job import FIRST_SAMPLES, Job, all_failed
from midsight.extraction.pipeline import extract_all, map_in_background
from midsight.extraction.stopping import stopping_on_signals
from midsight.extraction.todo import Progress, Todo
from midsight.samples.images import Note, say_nothing
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

    def store_waiting(self, _: object = None) -> list[Failure | None]:
        """Stores what waits; returns the failures that were stored, None for each row."""
        stored: list[Failure | None] = []
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


def fill(
    writer: RunWriter,
    job: Job,
    todo: Todo,
    *,
    budget: Budget,
    keep_going: bool,
    on_progress: Callable[[Progress], None],
    note: Note = say_nothing,
    say: Note = say_nothing,
) -> None:
    """Extracts what is to do, and stores finished samples while the next ones are in the model.

    Samples that were in work when a process died come last, and alone. `note` is told of images that come out nearly
    black, and `say` once of samples that fail only together. Signals commit what is computed, and end the process.
    Raises AllFailedError if a run without rows begins with failures only, unless it is to keep going.
    """
    progress = job.before(todo)
    on_progress(progress)
    results = _Results(writer)
    suspects: list[Sample] = []
    opening = Opening(todo.unusable, watched=not keep_going and writer.done <= writer.failed)

    def count(stored: Sequence[Failure | None]) -> None:
        nonlocal progress
        failures = [failure for failure in stored if failure is not None]
        rows = len(stored) - len(failures)
        progress = replace(progress, done=progress.done + rows, failed=progress.failed + len(failures))
        on_progress(progress)
        opening.add(failures, stored=rows)

    def unsuspected(rows: Iterable[SampleOrFailure]) -> Iterator[SampleOrFailure]:
        for row in rows:
            if isinstance(row, Sample) and writer.attempts.is_suspect(row.sample_id):
                suspects.append(row)
            else:
                yield row

    in_work = writer.attempts.working_on
    calls = extract_all(job.model, job.request, unsuspected(todo.rows), budget, in_work, note, say)
    with stopping_on_signals(results.stop):
        try:
            collected = collect(calls, results.waiting)
            with closing(calls), closing(map_in_background(results.store_waiting, collected)) as stored:
                for outcomes in stored:
                    count(outcomes)
            if suspects:
                writer.commit()
            for sample in suspects:
                results.waiting.append(judge(writer, job, sample, note))
                count(results.store_waiting())
        finally:
            results.commit()


class Opening:
    """The samples that a run begins with, as long as all of them fail."""

    def __init__(self, unusable: Iterable[Failure], *, watched: bool) -> None:
        """`unusable` are the rows that were known to fail; they do not count."""
        self._known = {failure.sample_id for failure in unusable}
        self._watched = watched
        self._failures: list[Failure] = []

    def add(self, failures: Sequence[Failure], *, stored: int) -> None:
        """Counts the outcomes of one call; raises AllFailedError if there are enough, all of them failures."""
        self._watched = self._watched and not stored
        if self._watched:
            self._failures += [failure for failure in failures if failure.sample_id not in self._known]
            if len(self._failures) >= FIRST_SAMPLES:
                raise all_failed(self._failures, recorded=True)


def collect(calls: Iterable[list[Outcome]], waiting: deque[Outcome]) -> Iterator[None]:
    """Adds the outcomes of each call to `waiting` as soon as they are computed."""
    for outcomes in calls:
        waiting.extend(outcomes)
        yield


def judge(writer: RunWriter, job: Job, sample: Sample, note: Note) -> Outcome:
    """The outcome of a suspect: tried alone, or set aside if enough processes died of it."""
    attempts, sample_id = writer.attempts, sample.sample_id
    is_recorded = sample_id in writer.failed
    if attempts.is_set_aside(sample_id):
        if not is_recorded or sample_id in attempts.died_last:
            return set_aside(sample)
        attempts.try_again(sample_id)
    if not can_fork(job.model):
        writer.commit()  # the sample may end this process
    return try_alone(job.model, job.request, sample, attempts, note)


def store(writer: RunWriter, outcome: Outcome) -> Failure | None:
    """Stores an outcome; returns the failure that was stored, None for a row.

    A record with values that the run cannot hold becomes a failure.
    """
    if isinstance(outcome, Failure):
        writer.fail(outcome)
        return outcome
    try:
        writer.add(outcome)
    except SampleError as error:
        failure = Failure(outcome.sample_id, outcome.input_index, str(error))
        writer.fail(failure)
        return failure
    return None


def _is_verdict(attempts: Attempts, outcome: Outcome) -> bool:
    """Whether the outcome says that the sample was set aside, which the next start has to know."""
    return isinstance(outcome, Failure) and attempts.is_set_aside(outcome.sample_id)

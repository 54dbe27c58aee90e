"""Samples to outcomes: while some are in the model, threads read, decode and tokenise those that come next."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import TypeVar

import torch

from midsight.errors import MidsightError
from midsight.extraction.batch import Outcome, extract_prepared
from midsight.extraction.batches import cut
from midsight.extraction.budget import Budget
from midsight.extraction.prepare import PreparedSample, prepare, source_key
from midsight.extraction.request import Plan
from midsight.models.loading import LoadedModel
from midsight.samples.sample import Failure, Sample
from midsight.samples.streams import until_broken

T = TypeVar("T")
R = TypeVar("R")
InWork = Callable[[Sequence[str]], AbstractContextManager[None]]
"""Sample ids -> a block during which they are worked on."""

WINDOW_CALLS = 4
"""Calls whose samples are looked at together, so that prompts of like length meet."""
WINDOW_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Pixels after which a window is full, by device."""
WORKERS = min(4, os.cpu_count() or 1)
"""Threads that prepare images."""


def extract_all(
    model: LoadedModel,
    plan: Plan,
    outcomes: Iterable[Sample | Failure],
    budget: Budget,
    in_work: InWork = lambda _: nullcontext(),
) -> Generator[list[Outcome]]:
    """One outcome for each sample, those of a call of the model together; failures pass through.

    Samples on one image should follow each other. `in_work` is entered for samples that are prepared, and again
    while they are in the model. Where the samples break off, what has come is extracted before the error.
    """

    def prepared(rows: Sequence[Sample | Failure]) -> list[PreparedSample | Failure]:
        samples = [row for row in rows if isinstance(row, Sample)]
        with in_work([sample.sample_id for sample in samples]):
            return [*(row for row in rows if isinstance(row, Failure)), *prepare(model, plan, samples)]

    threads = torch.get_num_threads()
    broken: list[MidsightError] = []
    rows = by_image(until_broken(outcomes, broken), budget)
    try:
        with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            full = WINDOW_BYTES.get(model.device.type, WINDOW_BYTES["cpu"])
            for window in ahead(windows(in_order(pool, prepared, rows), budget, full)):
                if failures := [item for item in window if isinstance(item, Failure)]:
                    yield list(failures)
                ready = [item for item in window if isinstance(item, PreparedSample)]
                for batch, tokens in cut(ready, plan, budget):
                    with in_work([item.sample.sample_id for item in batch]), budget.watching(len(batch), tokens):
                        done = extract_prepared(model, plan, batch, on_memory=budget.learn)
                    yield done
    finally:  # what a worker sets for itself, threads that start later would take over
        torch.set_num_threads(threads)
    if broken:
        raise broken[0]


def by_image(outcomes: Iterable[Sample | Failure], budget: Budget) -> Iterator[list[Sample | Failure]]:
    """Samples that follow each other on one image, or failures that do, in lists that fill no more than a window."""

    def images(outcome: Sample | Failure) -> list[Hashable] | None:
        return [source_key(source) for source in outcome.images] if isinstance(outcome, Sample) else None

    for _, same in groupby(outcomes, key=images):
        rows: list[Sample | Failure] = []
        for row in same:
            rows.append(row)
            if len(rows) == WINDOW_CALLS * budget.most_samples:
                yield rows
                rows = []
        if rows:
            yield rows


def windows(
    prepared: Iterable[list[PreparedSample | Failure]], budget: Budget, most_bytes: int
) -> Iterator[list[PreparedSample | Failure]]:
    """What is planned together: a few calls of samples, or as many as have `most_bytes` of pixels.

    First a single call, so that the model need not wait for more.
    """
    window: list[PreparedSample | Failure] = []
    held, full = 0, budget.samples
    for group in prepared:
        images = {id(i): i for item in group if isinstance(item, PreparedSample) for i in item.images}
        held += sum(image.pixel_values.nbytes for image in images.values())
        window += group
        if len(window) >= full or held >= most_bytes:
            yield window
            window, held, full = [], 0, WINDOW_CALLS * budget.most_samples
    if window:
        yield window


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The work's results in the order of the items, a few of them computed ahead."""
    futures: deque[Future[R]] = deque()
    for item in items:
        futures.append(pool.submit(work, item))
        if len(futures) > WORKERS:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each asked for in another thread while the one before is used."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # pyright: ignore[reportReturnType]


def behind(work: Callable[[T], R], items: Iterable[T]) -> Generator[R]:
    """The work's results, each computed in another thread while the next item is made."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[R] | None = None
        for item in items:
            if waiting is not None:
                yield waiting.result()
            waiting = pool.submit(work, item)
        if waiting is not None:
            yield waiting.result()

"""Samples to outcomes: while some are in the model, threads read, decode and tokenise the next ones."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import TypeVar

import torch

from midsight.checkpoints.loading import LoadedModel
from midsight.errors import MidsightError
from midsight.extraction.budget import Budget
from midsight.extraction.calls import CacheRow, Call, make_rows, plan_calls, sort_rows
from midsight.extraction.extract_call import Outcome, extract_or_halve
from midsight.extraction.prepare import PreparedSample, prepare, source_key
from midsight.extraction.request import ResolvedRequest
from midsight.memory import free_memory
from midsight.samples.images import Note, say_nothing
from midsight.samples.sample import Failure, Sample
from midsight.samples.streams import until_broken

T = TypeVar("T")
R = TypeVar("R")
InWork = Callable[[Sequence[str]], AbstractContextManager[None]]
"""Takes sample ids; returns a context in which these samples count as in progress."""

WINDOW_CALLS = 4
"""Calls that are planned together, so that prompts of similar length share a call."""
WINDOW_BYTES, WINDOW_SHARE = 2**28, 1 / 16
"""Bytes of pixels that fill a window: a share of the free memory, and at least so many."""
WORKERS = min(4, os.cpu_count() or 1)
"""Threads that prepare images."""


def extract_all(
    model: LoadedModel,
    request: ResolvedRequest,
    samples: Iterable[Sample | Failure],
    budget: Budget,
    in_work: InWork = lambda _: nullcontext(),
    note: Note = say_nothing,
    say: Note = say_nothing,
) -> Generator[list[Outcome]]:
    """One outcome for each sample, one list per call of the model; failures pass through.

    Samples on one image should follow each other. `in_work` is entered for samples that are prepared, and again while
    they are in the model. `note` is told of images that come out nearly black, and `say` once of samples that fail
    only together. If a stream of samples breaks off, the samples before that are extracted, and then the error is
    raised.
    """

    def prepared(rows: Sequence[Sample | Failure]) -> list[PreparedSample | Failure]:
        to_prepare = [row for row in rows if isinstance(row, Sample)]
        with in_work([sample.sample_id for sample in to_prepare]):
            return [*(row for row in rows if isinstance(row, Failure)), *prepare(model, request, to_prepare, note)]

    def extract(call: Call) -> list[Outcome]:
        with in_work([item.sample.sample_id for item in call.items]), budget.watching(call.size):
            return extract_or_halve(model, request, call, on_memory=budget.learn, on_apart=tell_once)

    def tell_once(samples: int, problem: str) -> None:
        nonlocal is_told
        if not is_told:
            say(describe_apart(samples, problem))
        is_told = True

    is_told = False
    threads = torch.get_num_threads()
    broken: list[MidsightError] = []
    waiting: list[CacheRow] = []
    rows = by_image(until_broken(samples, broken), budget)
    most_bytes = max(WINDOW_BYTES, int(WINDOW_SHARE * free_memory()))
    try:
        with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            is_opening = True
            for window in prefetch(windows(in_order(pool, prepared, rows), request, budget, most_bytes)):
                first, later = failures_around_samples(window)
                if waiting:  # samples that came before all of them
                    first, later = [], [*first, *later]
                if first:
                    yield first
                ready = [item for item in window if isinstance(item, PreparedSample)]
                waiting = sort_rows([*waiting, *make_rows(ready, request)])
                for call in plan_calls(waiting, budget, last=is_opening and bool(later)):
                    yield extract(call)
                    is_opening = False
                if later:
                    yield later
            yield from map(extract, plan_calls(waiting, budget))
    finally:  # threads that start later would inherit the number that a worker set for itself
        torch.set_num_threads(threads)
    if broken:
        raise broken[0]


def describe_apart(samples: int, problem: str) -> str:
    """The sentence for samples that fail only together."""
    return (
        f"A call of {samples} samples failed ({problem}), and smaller calls of the same samples did not. No sample is "
        "lost; if many calls fail, a smaller batch size is faster."
    )


def failures_around_samples(window: Sequence[PreparedSample | Failure]) -> tuple[list[Outcome], list[Outcome]]:
    """The failures before the first prepared sample, and those after it.

    A run that would stop if it began with failures only has to see a good sample before the failures that follow it.
    """
    before = itertools.takewhile(lambda item: isinstance(item, Failure), window)
    start = sum(1 for _ in before)
    first, later = ([item for item in part if isinstance(item, Failure)] for part in (window[:start], window[start:]))
    return [*first], [*later]


def by_image(samples: Iterable[Sample | Failure], budget: Budget) -> Iterator[list[Sample | Failure]]:
    """Lists of consecutive samples on one image, or of consecutive failures, none longer than a window."""

    def images(sample: Sample | Failure) -> list[Hashable] | None:
        return [source_key(source) for source in sample.images] if isinstance(sample, Sample) else None

    for _, same in groupby(samples, key=images):
        rows: list[Sample | Failure] = []
        for row in same:
            rows.append(row)
            if len(rows) == WINDOW_CALLS * budget.most_samples:
                yield rows
                rows = []
        if rows:
            yield rows


def windows(
    prepared: Iterable[list[PreparedSample | Failure]], request: ResolvedRequest, budget: Budget, most_bytes: int
) -> Iterator[list[PreparedSample | Failure]]:
    """Windows: the samples that are planned together, enough for a few calls or for `most_bytes` of pixels.

    The first window is about a single call, so that the model starts early; the lengths of its prompts say how large
    calls are. Each later one may be twice as large as the one that is in the model while it is prepared.
    """
    window: list[PreparedSample | Failure] = []
    held, count, tokens, full = 0, 0, 0, budget.samples
    for group in prepared:
        ready = [item for item in group if isinstance(item, PreparedSample)]
        images = {id(i): i for item in ready for i in item.images}
        held += sum(image.nbytes for image in images.values())
        window += group
        is_full = len(window) >= full or held >= most_bytes
        if budget.seeks_first_size and ready:
            count += len(ready)
            tokens += sum(row.prefix + row.suffix for row in make_rows(ready, request))
            is_full = is_full or budget.may_begin(count, tokens)
            if is_full:
                budget.begin(count, tokens)
                full = budget.samples
        if is_full:
            yield window
            window, held, full = [], 0, min(2 * full, WINDOW_CALLS * budget.most_samples)
    if window:
        yield window


def in_order(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The work's results in the order of the items, a few of them computed in advance."""
    futures: deque[Future[R]] = deque()
    for item in items:
        futures.append(pool.submit(work, item))
        if len(futures) > WORKERS:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The items, each fetched in another thread while the one before is used."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # pyright: ignore[reportReturnType]


def map_in_background(work: Callable[[T], R], items: Iterable[T]) -> Generator[R]:
    """The work's results, each computed in another thread while the next item is made."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[R] | None = None
        for item in items:
            if waiting is not None:
                yield waiting.result()
            waiting = pool.submit(work, item)
        if waiting is not None:
            yield waiting.result()

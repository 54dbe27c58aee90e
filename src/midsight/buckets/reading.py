"""Reading many objects, and many ranges of one, at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from midsight.buckets.path import BucketPath, Place

AT_ONCE = 32
"""Requests at a time."""
PARTS_AHEAD = 64
"""Parts that are read at a time."""
AHEAD_BYTES = 256 * 2**20
"""What is read of them together, unless it is more of one, in bytes."""

T = TypeVar("T")
R = TypeVar("R")


def read_all(files: Iterable[BucketPath]) -> dict[str, bytes]:
    """The content of each object by its name, some at a time; without those that are not there."""
    files = [*files]
    with ThreadPoolExecutor(AT_ONCE, "midsight-bucket") as pool:
        contents = pool.map(_read_if_there, files)
        return {file.name: content for file, content in zip(files, contents, strict=True) if content is not None}


def _read_if_there(file: BucketPath) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def each_file(files: Iterable[Place], read: Callable[[Place], R]) -> Iterator[R]:
    """`read` of each file, in order; of those in a bucket, the next ones are read meanwhile."""
    rest = iter(files)
    first = next(rest, None)
    return iter(()) if first is None else in_turn(first, chain([first], rest), read, size=lambda _: 0)


def in_turn(path: Place, items: Iterable[T], read: Callable[[T], R], *, size: Callable[[T], int]) -> Iterator[R]:
    """`read` of each item, in order; if `path` is in a bucket, the next ones are read meanwhile, as `ahead` does."""
    return ahead(items, read, size=size) if isinstance(path, BucketPath) else map(read, items)


def ahead(items: Iterable[T], read: Callable[[T], R], *, size: Callable[[T], int]) -> Iterator[R]:
    """`read` of each item, in order, while the next ones are read too: PARTS_AHEAD, and AHEAD_BYTES by `size`."""
    waiting: deque[tuple[int, Future[R]]] = deque()
    with ThreadPoolExecutor(PARTS_AHEAD, "midsight-parts") as pool:
        try:
            for item in items:
                room = AHEAD_BYTES - size(item)
                while waiting and (len(waiting) >= PARTS_AHEAD or sum(taken for taken, _ in waiting) > room):
                    yield waiting.popleft()[1].result()
                waiting.append((size(item), pool.submit(read, item)))
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()


def read_spans(path: BucketPath, view: memoryview, spans: Sequence[slice]) -> None:
    """Read these spans of an object into the same places of `view`; those that touch are one request."""
    merged: list[slice] = []
    for span in sorted(spans, key=lambda span: span.start):
        if merged and span.start == merged[-1].stop:
            span = slice(merged.pop().start, span.stop)
        merged.append(span)

    def read(span: slice) -> None:
        view[span] = path.read_range(span.start, span.stop)

    if len(merged) < 2:
        for span in merged:
            read(span)
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(merged)), "midsight-bucket") as pool:
        for _ in pool.map(read, merged):
            pass

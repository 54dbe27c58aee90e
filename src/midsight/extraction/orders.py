"""What workers are told: the call once, and then work orders, which are small shards of the dataset."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any, Self

import numpy as np

from midsight.checkpoints.load_options import LoadKeywords
from midsight.errors import MidsightError, Option
from midsight.extraction.task import BatchSize, Task
from midsight.extraction.todo import Todo, number_of_shard
from midsight.samples.packed import keys_of
from midsight.samples.tables import Dataset
from midsight.store.files import Shard
from midsight.store.optional import import_optional

ORDER_SAMPLES = 400
"""Samples in one order, about."""
ORDERS_PER_WORKER = 4
"""Fewest orders for each worker, so that all end at about the same time."""


@dataclass(frozen=True)
class Call:
    """A call of extract as every worker repeats it, in the folder in which it was made."""

    data: str
    """The data."""
    task: Mapping[str, Any]
    """Arguments of make_task, less the data."""
    loading: LoadKeywords
    """How the model is loaded."""
    batch_size: BatchSize
    """Maximum number of samples in one call of the model."""
    commit_seconds: float
    """Maximum time between two commits, in seconds."""
    data_sha256: str | None
    """The hash of the data, whose rows the orders count."""
    folder: str = field(default_factory=os.getcwd)
    """The working folder, which all nodes share."""
    keep_going: bool = False
    """Whether a worker goes on even if its first 100 samples all fail."""


@dataclass(frozen=True)
class Order:
    """A shard of a run that one worker does, with all questions on its images."""

    shard: Shard
    """The shard that its parts and records are named after."""
    samples: tuple[int, ...]
    """Positions of the samples in the dataset."""
    failures: tuple[int, ...]
    """Positions of rows that cannot become samples among the dataset's failures."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The order that `str` has spelled."""
        stored = json.loads(text)
        number, count = stored["shard"]
        return cls((number, count), tuple(stored["samples"]), tuple(stored["failures"]))

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @property
    def size(self) -> int:
        """Number of samples and failures."""
        return len(self.samples) + len(self.failures)

    def ids(self, data: Dataset) -> list[str]:
        """Ids of the failures and samples."""
        failures = [data.failures[position].sample_id for position in self.failures]
        return [*failures, *(data.samples[position].sample_id for position in self.samples)]

    def todo(self, data: Dataset, done: Collection[str]) -> Todo:
        """What is left of the order after the samples with the ids `done`."""
        failures = [data.failures[position] for position in self.failures]
        failures = [failure for failure in failures if failure.sample_id not in done]
        samples = [data.samples[position] for position in self.samples]
        samples = [sample for sample in samples if sample.sample_id not in done]
        return Todo(
            rows=[*failures, *samples],
            samples=self.size,
            images=None,
            already=self.size - len(samples) - len(failures),
            already_failed=0,
            remaining=len(samples),
            remaining_images=None,
            unusable=tuple(failures),
        )


def require_whole(task: Task) -> None:
    """Raises MidsightError for a task that cannot be divided into orders, or if Ray is not installed."""
    if task.shard != (0, 1):
        raise MidsightError(
            Option("shard"), " and ", Option("ray"), " both divide the data between processes; give one of them."
        )
    if not isinstance(task.data, Dataset):
        raise MidsightError(
            Option("ray"),
            " needs data whose rows are known at the start, and these are a stream; download them, or give each "
            "process its own ",
            Option("shard"),
            ".",
        )
    import_optional("ray.data")


def make_orders(data: Dataset, todo: Todo, workers: int) -> list[Order]:
    """The orders that do `todo`, the largest first.

    Their number depends on the dataset alone if it is large, so that a resumed run has the same shards.
    """
    rows = len(data.samples) + len(data.failures)
    count = max(1, ceil(rows / ORDER_SAMPLES), min(workers * ORDERS_PER_WORKER, rows))
    samples: defaultdict[int, list[int]] = defaultdict(list)
    failures: defaultdict[int, list[int]] = defaultdict(list)
    numbers = np.fromiter((number_of_shard(key, count) for key in keys_of(data.samples)), np.int64)
    for position in todo.order.tolist():
        samples[int(numbers[position])].append(position)
    left = {failure.sample_id for failure in todo.unusable}
    for position, failure in enumerate(data.failures):
        if failure.sample_id in left:
            failures[number_of_shard(failure, count)].append(position)
    orders = [
        Order((number, count), tuple(samples[number]), tuple(failures[number])) for number in {*samples, *failures}
    ]
    return sorted(orders, key=lambda order: (-order.size, order.shard))

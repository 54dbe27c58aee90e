"""The work of one call of extract: its shard of a dataset, without the samples that the run already has."""

from __future__ import annotations

import hashlib
import itertools
import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from midsight.samples.packed import keys_of
from midsight.samples.sample import Failure, Sample, SampleKey, SampleOrFailure
from midsight.samples.streams import SampleStream, grouped
from midsight.samples.tables import Dataset
from midsight.store.files import Shard


@dataclass(frozen=True)
class Progress:
    """The progress of a run."""

    samples: int | None
    """Rows of the dataset that this call works on; None for a stream, whose length is not known."""
    images: int | None
    """Distinct images among them, by image key."""
    already: int
    """Samples that were stored or failed before this call; for a stream, all of the run's."""
    already_failed: int
    """How many of those failed."""
    done: int
    """Samples stored by this call."""
    failed: int
    """Samples that failed in this call."""
    estimated_bytes: int | None
    """Approximate size on disk of the samples still to do."""
    free_bytes: int | None
    """Free space on the run's disk, before this call; None in a bucket."""

    @property
    def remaining(self) -> int | None:
        """Samples still to do."""
        return None if self.samples is None else self.samples - self.already - self.done - self.failed

    @property
    def all_failed(self) -> int:
        """Samples that failed, in this call or before."""
        return self.already_failed + self.failed


@dataclass(frozen=True)
class Todo:
    """The work of one call of extract."""

    rows: Iterable[SampleOrFailure]
    """Samples to extract, those on one image together, and rows that cannot become samples."""
    samples: int | None
    """Rows of this shard; None for a stream."""
    images: int | None
    """Distinct images among them, by image key."""
    already: int
    """Samples of this shard that the run has; for a stream, whose rows are not known yet, all that the run has."""
    already_failed: int
    """How many of those failed."""
    remaining: int | None
    """Samples to extract."""
    remaining_images: int | None
    """Distinct images among those, by image key."""
    unusable: tuple[Failure, ...] = ()
    """Rows to record that cannot become samples; those of a stream are not known yet."""
    order: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Indices in the dataset's samples of those to extract, in the order of the work; empty for a stream."""
    first_of_image: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Those of the first sample on each image, in the same order."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to extract or to record."""
        return self.remaining == 0 and not self.unusable


def choose(
    data: Dataset | SampleStream,
    done: Collection[str],
    failed: Collection[str] = (),
    *,
    shard: Shard,
    limit: int | None,
) -> Todo:
    """The rows of the shard among the dataset's first `limit` rows whose ids are not in `done`.

    `failed` are the ids of the samples that failed before.
    """
    if isinstance(data, SampleStream):
        own = rows_in_shard(itertools.islice(data.rows(), limit), shard)
        left = (row for row in own if row.sample_id not in done)
        return Todo(grouped(left), None, None, len(done), len({*failed}.intersection(done)), None, None)
    end = math.inf if limit is None else limit
    failures = [failure for failure in data.failures if is_in_shard(failure, shard) and failure.input_index < end]
    failures_left = [failure for failure in failures if failure.sample_id not in done]
    already_failed = len(failures) - len(failures_left)
    # hashes of image keys, because a million keys would take too much memory
    indices, images, done_images = array("q"), array("q"), array("q")
    for index, key in enumerate(keys_of(data.samples)):
        if key.input_index >= end or not is_in_shard(key, shard):
            continue
        if key.sample_id in done:
            done_images.append(hash(key.image_key))
            already_failed += key.sample_id in failed
        else:
            indices.append(index)
            images.append(hash(key.image_key))
    ranks = image_ranks(np.array(images, np.int64))
    places = np.argsort(ranks, kind="stable")
    order = np.array(indices, np.int64)[places]
    first_places = np.unique(ranks[places], return_index=True)[1]
    already = len(done_images) + len(failures) - len(failures_left)
    return Todo(
        rows=itertools.chain(failures_left, (data.samples[index] for index in order.tolist())),
        samples=already + len(failures_left) + len(images),
        images=len(np.unique(np.concatenate([images, done_images]).astype(np.int64))),
        already=already,
        already_failed=already_failed,
        remaining=len(images),
        remaining_images=len(first_places),
        unusable=tuple(failures_left),
        order=order,
        first_of_image=order[first_places],
    )


def rows_in_shard(rows: Iterable[SampleOrFailure], shard: Shard) -> Iterator[SampleOrFailure]:
    """The rows of one shard."""
    return (row for row in rows if is_in_shard(row, shard))


def is_in_shard(row: SampleOrFailure | SampleKey, shard: Shard) -> bool:
    """Whether a row belongs to the shard: samples are assigned by a hash of the image path, failures by their row.

    The assignment depends on the row alone, and all questions on an image are in one shard.
    """
    number, count = shard
    return number_of_shard(row, count) == number


def number_of_shard(row: SampleOrFailure | SampleKey, count: int) -> int:
    """Which of `count` shards a row belongs to."""
    value = row.input_index
    if not isinstance(row, Failure) and count > 1:
        digest = hashlib.sha256(row.image_key.encode("utf-8", "surrogatepass")).digest()
        value = int.from_bytes(digest[:8], "big")
    return value % count


def group_by_image(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, with those of one image key together; images stay in the order in which they first appear."""
    ranks = image_ranks(np.array([hash(sample.image_key) for sample in samples], np.int64))
    return [samples[index] for index in np.argsort(ranks, kind="stable")]


def image_ranks(images: np.ndarray) -> np.ndarray:
    """How many other images appear before each sample's image, int64 [samples]; `images` are int64, one per image."""
    _, first, numbers = np.unique(images, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    return ranks[numbers]

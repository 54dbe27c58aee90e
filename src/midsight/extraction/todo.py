"""What one call has to do: its share of a dataset, less what the run holds."""

from __future__ import annotations

import hashlib
import itertools
import math
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from midsight.extraction.request import Plan
from midsight.models.loading import LoadedModel
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.samples.packed import keys_of
from midsight.samples.sample import Failure, Sample, SampleKey
from midsight.samples.streams import SampleStream, grouped
from midsight.samples.tables import Dataset
from midsight.store.layout import Shard
from midsight.store.spec import StoreDtype

COMPRESSED_SHARE = {
    ("float32", True): 0.9,
    ("float32", False): 0.36,
    ("float16", True): 0.93,
    ("float16", False): 0.77,
}
"""Bytes on disk by byte of vectors, by store dtype and whether the model computes in float32."""
ROW_BYTES = 400
"""What a row's text and numbers beside the vectors take, about."""
FOLDER_BYTES = 20_000
"""What run.json, a record and a part's schema take, about."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    samples: int | None
    """Rows of the dataset that this call is about; None for a stream, whose end is not known."""
    images: int | None
    """Distinct image references among them."""
    already: int
    """Samples that were stored or failed before this call; of a stream, all of the run's."""
    done: int
    """Samples stored by this call."""
    failed: int
    """Samples that failed in this call."""
    estimated_bytes: int | None
    """What the samples still to do take on disk, about."""
    free_bytes: int
    """Free space where the run lies, before this call."""

    @property
    def remaining(self) -> int | None:
        """Samples still to do."""
        return None if self.samples is None else self.samples - self.already - self.done - self.failed


@dataclass(frozen=True)
class Todo:
    """The work of one call."""

    outcomes: Iterable[Sample | Failure]
    """Samples to extract, those on one image together, and rows that cannot become samples."""
    samples: int | None
    """Rows that are this shard's; None for a stream."""
    images: int | None
    """Distinct image references among them."""
    already: int
    """Samples of this shard that the run holds; of a stream, whose rows are not known yet, all that it holds."""
    remaining: int | None
    """Samples to extract."""
    remaining_images: int | None
    """Distinct image references among those."""


def choose(data: Dataset | SampleStream, done: Collection[str], *, shard: Shard, limit: int | None) -> Todo:
    """What of the dataset's first `limit` rows is the shard's and not among the ids `done`."""
    if isinstance(data, SampleStream):
        own = cut(itertools.islice(data.outcomes(), limit), shard)
        left = (outcome for outcome in own if outcome.sample_id not in done)
        return Todo(grouped(left), None, None, len(done), None, None)
    end = math.inf if limit is None else limit
    failures = [failure for failure in cut(data.failures, shard) if failure.input_index < end]
    failures_left = [failure for failure in failures if failure.sample_id not in done]
    done_images: list[str] = []
    places, images = array("q"), list[str]()
    for place, key in enumerate(keys_of(data.samples)):
        if key.input_index >= end or not is_of(key, shard):
            continue
        if key.sample_id in done:
            done_images.append(key.image_key)
        else:
            places.append(place)
            images.append(key.image_key)
    order = np.array(places, np.int64)[order_by_image(images)]
    already = len(done_images) + len(failures) - len(failures_left)
    return Todo(
        outcomes=itertools.chain(failures_left, (data.samples[place] for place in order.tolist())),
        samples=already + len(failures_left) + len(images),
        images=len({*done_images, *images}),
        already=already,
        remaining=len(images),
        remaining_images=len({*images}),
    )


def cut(outcomes: Iterable[Sample | Failure], shard: Shard) -> Iterator[Sample | Failure]:
    """The rows of one shard."""
    return (outcome for outcome in outcomes if is_of(outcome, shard))


def is_of(outcome: Sample | SampleKey | Failure, shard: Shard) -> bool:
    """Whether a row is the shard's: a hash of its image's reference says whose a sample is.

    So the cut depends on the row alone, whatever became of the others, and all questions of an image are one shard's.
    """
    number, count = shard
    place = outcome.input_index
    if not isinstance(outcome, Failure) and count > 1:
        digest = hashlib.sha256(outcome.image_key.encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big")
    return place % count == number


def group_by_image(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with those of one image reference together, images in the order they first appear."""
    return [samples[place] for place in order_by_image(sample.image_key for sample in samples)]


def order_by_image(images: Iterable[str]) -> np.ndarray:
    """The same order as places, from the image references of all samples."""
    first: dict[str, int] = {}
    ranks = [first.setdefault(image, len(first)) for image in images]
    return np.argsort(np.array(ranks, np.int64), kind="stable")


def estimate_bytes(model: LoadedModel, plan: Plan, store_dtype: StoreDtype, *, samples: int, images: int) -> int:
    """What the samples take on disk, about: their vectors compressed, those that repeat with an image once, and text.

    scripts/size_figures.py measures the shares that compression leaves.
    """
    by_image = {VISION_ONLY, PROCESSOR_POOLED_PIXELS} if model.adapter.shares_image_prefix else set()
    by_image |= {str(tap) for tap in plan.taps if model.adapter.shares_image_prefix and tap.position != "query_token"}
    widths = sum(width * (images if name in by_image else samples) for name, width in plan.vectors.items())
    itemsize = 4 if store_dtype == "float32" else 2
    share = COMPRESSED_SHARE[store_dtype, model.dtype == torch.float32]
    return round(widths * itemsize * share) + samples * ROW_BYTES + FOLDER_BYTES

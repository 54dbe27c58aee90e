"""What one call has to do: its share of a dataset, less what the run holds."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch

from midsight.extraction.request import Plan
from midsight.models.loading import LoadedModel
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.samples.sample import Failure, Sample
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
    """Samples that were stored or failed before this call."""
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
    """Samples that the run holds."""
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
    rows = heapq.merge(data.samples, data.failures, key=attrgetter("input_index"))
    own = list(cut(itertools.islice(rows, limit), shard))
    left = [outcome for outcome in own if outcome.sample_id not in done]
    failures = [outcome for outcome in left if isinstance(outcome, Failure)]
    samples = group_by_image(outcome for outcome in left if isinstance(outcome, Sample))
    return Todo(
        outcomes=[*failures, *samples],
        samples=len(own),
        images=count_images(own),
        already=len(own) - len(left),
        remaining=len(samples),
        remaining_images=count_images(samples),
    )


def cut(outcomes: Iterable[Sample | Failure], shard: Shard) -> Iterator[Sample | Failure]:
    """The rows of one shard: a hash of its image's reference says whose a sample is.

    So the cut depends on the row alone, whatever became of the others, and all questions of an image are one shard's.
    """
    number, count = shard
    for outcome in outcomes:
        place = outcome.input_index
        if isinstance(outcome, Sample) and count > 1:
            digest = hashlib.sha256(outcome.image_key.encode("utf-8", "surrogatepass")).digest()
            place = int.from_bytes(digest[:8], "big")
        if place % count == number:
            yield outcome


def group_by_image(samples: Iterable[Sample]) -> list[Sample]:
    """The samples with those of one image reference together, images in the order they first appear."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image_key, []).append(sample)
    return [sample for group in groups.values() for sample in group]


def count_images(outcomes: Iterable[Sample | Failure]) -> int:
    """Distinct image references."""
    return len({outcome.image_key for outcome in outcomes if isinstance(outcome, Sample)})


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

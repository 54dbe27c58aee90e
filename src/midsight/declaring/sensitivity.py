"""Whether a small copy tells things apart: a proof on a model in which all states are alike would show nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from midsight.check.check import Check
from midsight.check.full_forward import relative_error
from midsight.check.subject import Subject, record_of
from midsight.extraction.extract_call import extract_samples
from midsight.records import VISION_ONLY, Record
from midsight.samples.sample import Sample

LEAST = 0.02
"""Smallest relative difference: two thousand times the limit of the other checks."""


def check_sensitivity(subject: Subject) -> list[Check]:
    """How far states of the copy are apart: between layers, between positions, and with another image or question."""
    one, other = subject.samples[:2]
    mixed = [
        Sample("another image", 0, other.images, one.question),
        Sample("another question", 1, one.images, other.question),
    ]
    with_image, with_question = (
        record_of(extract_samples(subject.model, subject.without_answers, [sample])[0]) for sample in mixed
    )
    first = subject.alone[0]
    last = f"layer_{subject.model.n_layers - 1}"
    query, image = f"query_token_representation.{last}", f"vision_token_representation.{last}"
    apart: dict[str, Callable[[], float]] = {
        "neighbouring layers at the query token": lambda: between_layers(first, subject.model.n_layers),
        "image and query token": lambda: relative_error(first.vectors[image], first.vectors[query]),
        "vision features of two images": lambda: difference(first, with_image, VISION_ONLY),
        "the image token of two images": lambda: difference(first, with_image, image),
        "the query token of two images": lambda: difference(first, with_image, query),
        "the query token of two questions": lambda: difference(first, with_question, query),
    }
    return [
        Check(f"the copy tells apart {what}", measure(), LEAST, must_differ=True) for what, measure in apart.items()
    ]


def between_layers(record: Record, layers: int) -> float:
    """The smallest difference of one layer's state to the next one's."""
    states = [record.vectors[f"query_token_representation.layer_{layer}"] for layer in range(layers)]
    return float(np.min([relative_error(after, before) for before, after in pairwise(states)]))


def difference(one: Record, other: Record, column: str) -> float:
    """The relative difference of a vector of two records."""
    return relative_error(one.vectors[column], other.vectors[column])

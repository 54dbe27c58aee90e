"""One image-question pair, as midsight works with it from the first room to the last."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from midsight.samples.places import ImageUrl, StoredImage

ImageSource = Path | bytes | Image.Image | StoredImage | ImageUrl
"""An image as it is given: a file, an encoded image in memory, a decoded one, one that a table keeps, or an address."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row of a dataset asks of the model."""

    sample_id: str
    """Unique in its dataset."""
    input_index: int
    """Row in the dataset, from 0."""
    images: tuple[ImageSource, ...]
    """The images of the prompt, in its order."""
    question: str
    """The user's text, without template and without image placeholders."""
    image: str = ""
    """The reference to the images as the dataset gives it; several are a JSON list."""
    reference_answers: tuple[str, ...] = ()
    """Answers the dataset calls right; may be empty."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Every other column of the row, by column name."""

    @property
    def image_key(self) -> str:
        """What samples on the same images share before these are decoded; images without a reference share nothing."""
        return self.image or self.sample_id


class SampleKey(NamedTuple):
    """Of a sample what says whose it is and with which others it goes."""

    sample_id: str
    """Unique in its dataset."""
    input_index: int
    """Row in the dataset, from 0."""
    image_key: str
    """What samples on the same images share."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be extracted, and why."""

    sample_id: str
    """The sample's id."""
    input_index: int
    """Row in the dataset, from 0."""
    reason: str
    """One sentence."""


def make_sample_id(input_index: int, image: str, question: str) -> str:
    """The id of a sample that came without one: its row and 8 hex digits of what it asks.

    Benchmarks repeat pairs on purpose, so the row keeps repeats apart and the digits
    show when a dataset was reordered under a run.
    """
    digest = hashlib.sha256(f"{image}\0{question}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{input_index}-{digest[:8]}"

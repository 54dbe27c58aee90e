"""One image-question pair, in the form that all rooms use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from midsight.buckets.path import Place
from midsight.errors import counted
from midsight.samples.locations import EmbeddedImage, ImageUrl

ImageSource = Place | bytes | Image.Image | EmbeddedImage | ImageUrl
"""An image of a sample: a file or object, encoded bytes, a decoded image, one inside a table, or a web address."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image-question pair: what a row of a dataset asks the model.

    Args:
        sample_id: Unique in the dataset.
        input_index: Row in the dataset, from 0.
        images: The images of the prompt, in order: paths, encoded images as bytes, or PIL images.
        question: The user's text, without prompt template and image placeholders.
        image: Image reference as the dataset gives it; for several images a JSON list. Empty for images in memory.
        reference_answers: The answers that the dataset gives as correct; may be empty.
        extras: All other columns of the row: column name -> value.
    """

    sample_id: str
    input_index: int
    images: tuple[ImageSource, ...]
    question: str
    image: str = ""
    reference_answers: tuple[str, ...] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        image = self.image or counted(len(self.images), "image")
        return f"Sample({self.sample_id!r}, row {self.input_index} on {image}: {self.question!r})"

    @property
    def image_key(self) -> str:
        """Equal for samples on the same images, and known before decoding; the sample's id if it has no reference."""
        return self.image or self.sample_id


class SampleKey(NamedTuple):
    """Id, row and image key: what sharding and grouping need."""

    sample_id: str
    """Unique in the dataset."""
    input_index: int
    """Row in the dataset, from 0."""
    image_key: str
    """Equal for samples on the same images."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be extracted, and why."""

    sample_id: str
    """The sample's id."""
    input_index: int
    """Row in the dataset, from 0."""
    reason: str
    """One sentence."""

    def __repr__(self) -> str:
        return f"Failure({self.sample_id!r}, row {self.input_index}: {self.reason})"


SampleOrFailure = Sample | Failure
"""What a row of a dataset becomes."""


def make_sample_id(input_index: int, image: str, question: str) -> str:
    """An id for a sample without one: its row and 8 hex digits of a hash of image reference and question.

    The row keeps ids unique, because benchmarks repeat pairs on purpose. The hash reveals a dataset
    that was reordered between two calls of a run.
    """
    digest = hashlib.sha256(f"{image}\0{question}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{input_index}-{digest[:8]}"

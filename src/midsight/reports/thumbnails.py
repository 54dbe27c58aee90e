"""Small pictures of a run's images, found again through run.json; each image is made once."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from midsight.buckets.path import Place, to_place
from midsight.errors import MidsightError, Option, SampleError, UnreachableError
from midsight.samples.images import decode_image, resolve_image_path
from midsight.samples.images import image_id as id_of_pixels
from midsight.samples.locations import ImageUrl
from midsight.samples.open import open_dataset
from midsight.samples.options import DatasetOptions
from midsight.samples.packed import images_at, keys_of
from midsight.samples.places import HUB_PREFIX, find_place
from midsight.samples.sample import ImageSource
from midsight.samples.tables import Dataset
from midsight.store.reader import Run
from midsight.store.spec import DatasetSpec

SIDE_PX = 160
"""Longest side of a thumbnail."""
QUALITY = 75
"""WebP's."""
EMBEDDED = "sha256:"
"""How references to images inside a table begin."""
WORKERS = min(4, os.cpu_count() or 1)
_PIXELS = re.compile("[0-9a-f]{64}")
"""How image ids look that are a hash of pixels."""
REOPENED = ("images", "question_column", "id_column", "question", "split")
"""Recorded options with which a dataset is opened again, besides the image column."""


class ImageOfRun(NamedTuple):
    """An image as a row of the run names it."""

    reference: str
    """Content of the column `image`: a path, an address, a hash of an image in a table, or a JSON list of these."""
    input_index: int
    """The row in the dataset."""


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures by image id."""

    webp: Mapping[str, bytes]
    """By image id; images that were not found or cannot be decoded are missing."""
    problem: tuple[str | Option, ...]
    """Why the first missing one is missing, as the parts of a sentence; empty if none is."""


def make_thumbnails(run: Run, wanted: Mapping[str, ImageOfRun], folder: str | Path | None = None) -> Thumbnails:
    """Thumbnails of images of a run, WebP. Nothing is downloaded, and no path may leave the folder of the images.

    Args:
        run: The run, of which only run.json is read.
        wanted: An image for each image id; of several images in one prompt the first is shown.
        folder: Where image paths start from; by default what run.json says.

    Returns:
        The thumbnails of images that are there; one whose pixels are not those of its image id is not.
    """
    sources, problem = _find(run.spec.dataset, wanted, folder)
    made: dict[str, bytes] = {}
    pixels = [_pixels_of(image_id, wanted[image_id]) for image_id in sources]
    with ThreadPoolExecutor(WORKERS) as pool:
        for image_id, done in zip(sources, pool.map(_try, sources.values(), pixels), strict=True):
            if isinstance(done, bytes):
                made[image_id] = done
            elif not problem:
                problem = done
    return Thumbnails(made, problem)


def thumbnail(source: ImageSource, pixels: str | None = None) -> bytes:
    """An image no larger than SIDE_PX on a side, as WebP without metadata.

    Raises SampleError if it is not an image, or if `pixels` is given and is not its image id.
    """
    image = decode_image(source)
    if pixels is not None and id_of_pixels(image) != pixels:
        raise SampleError(f"The image {source} has other pixels than the run saw.")
    image.thumbnail((SIDE_PX, SIDE_PX))
    made = io.BytesIO()
    image.save(made, "WEBP", quality=QUALITY)
    return made.getvalue()


def _pixels_of(image_id: str, image: ImageOfRun) -> str | None:
    """The id that the image alone must have; None if it is one of several, or if the run does not know its pixels."""
    is_alone = not image.reference.startswith("[")
    return image_id if is_alone and _PIXELS.fullmatch(image_id) else None


def _try(source: ImageSource, pixels: str | None) -> bytes | tuple[str | Option, ...]:
    try:
        return thumbnail(source, pixels)
    except (SampleError, UnreachableError) as error:
        return error.args


def _find(
    spec: DatasetSpec, wanted: Mapping[str, ImageOfRun], folder: str | Path | None
) -> tuple[dict[str, ImageSource], tuple[str | Option, ...]]:
    """The sources of images by image id, and why the first missing one has none."""
    found: dict[str, ImageSource] = {}
    problem: tuple[str | Option, ...] = ()
    in_table: dict[int, tuple[str, str]] = {}
    root = _folder_of(spec) if folder is None else find_place(folder)
    resolved_root = None if root is None else root.resolve()
    for image_id, image in wanted.items():
        reference = _first(image.reference)
        if reference.startswith(EMBEDDED):
            in_table[image.input_index] = image_id, reference
        elif root is None:
            problem = problem or ("run.json names no folder of images; name it with ", Option("images"), ".")
        else:
            try:
                found[image_id] = resolve_image_path(reference, root, resolved_root)
            except SampleError as error:
                problem = problem or error.args
    if in_table:
        try:
            found |= _in_table(spec, in_table)
        except MidsightError as error:
            problem = problem or error.args
    return found, problem


def _first(reference: str) -> str:
    """The reference to the first of several images."""
    if reference.startswith("["):
        try:
            listed: Any = json.loads(reference)
        except ValueError:
            return reference
        if isinstance(listed, list) and listed and isinstance(listed[0], str):
            return listed[0]
    return reference


def _folder_of(spec: DatasetSpec) -> Place | None:
    """The folder that image paths start from; None if run.json does not say."""
    if spec.images is not None:
        return to_place(spec.images)
    if spec.path is None or spec.path.startswith(HUB_PREFIX):
        return None
    path = to_place(spec.path)
    return path if path.is_dir() else path.parent


def _in_table(spec: DatasetSpec, wanted: Mapping[int, tuple[str, str]]) -> dict[str, ImageSource]:
    """Images inside the dataset's files, by image id; `wanted` has image id and reference by row of the dataset.

    Raises MidsightError if the dataset cannot be opened again.
    """
    if spec.path is None or spec.path.startswith(HUB_PREFIX):
        raise MidsightError("The images were in memory or came as a stream, and are not read again.")
    given = {name: getattr(spec, name) for name in REOPENED}
    dataset = open_dataset(spec.path, DatasetOptions(**given, image_column=_columns(spec.image_column)))
    samples = dataset.samples if isinstance(dataset, Dataset) else ()
    return {
        image_id: source
        for position, key in enumerate(keys_of(samples))
        if key.input_index in wanted
        for image_id, reference in [wanted[key.input_index]]
        for source in _named(images_at(samples, position), reference)
    }


def _named(images: Sequence[ImageSource], reference: str) -> Iterator[ImageSource]:
    """The first of the images, if it is still the one of the reference."""
    if images and not isinstance(images[0], ImageUrl) and str(getattr(images[0], "reference", "")) == reference:
        yield images[0]


def _columns(recorded: str | None) -> str | list[str] | None:
    """The image column as it was given: several are recorded as a JSON list."""
    if recorded is None or not recorded.startswith("["):
        return recorded
    return json.loads(recorded)

"""Reads whole datasets: tables, folders of images, and pairs from Python.

A row that cannot become a sample becomes a failure with its reason, and the other rows are read. A problem
of the whole table, such as a missing column or repeated ids, is a MidsightError.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import reprlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from midsight.errors import MidsightError, Option, SampleError
from midsight.samples.benchmarks import assign_roles
from midsight.samples.extras import ExtraType, ExtraTypes
from midsight.samples.options import DEFAULT_OPTIONS, DatasetOptions, ResolvedOptions, resolved_options
from midsight.samples.packed import PackedSamples
from midsight.samples.row_to_sample import SampleMaker, validate_question
from midsight.samples.rows import Table, validate_storable
from midsight.samples.sample import Failure, ImageSource, Sample, SampleOrFailure, make_sample_id
from midsight.samples.sources import image_folder, is_folder, open_table


@dataclass(frozen=True)
class Dataset:
    """A dataset that was read as a whole: each of its rows is either a sample or a failure."""

    samples: Sequence[Sample]
    """In dataset order."""
    failures: tuple[Failure, ...]
    """Rows that cannot become samples, in dataset order."""
    extras: Mapping[str, ExtraType]
    """Column beyond image, question, answer and id -> the type that holds all its values."""
    sha256: str
    """Hex hash of the table's bytes, of a folder's question and image names, or of samples from Python."""
    path: Path | None
    """The table or folder; None for samples from Python."""
    rows: int
    """Number of rows: samples and failures."""
    options: ResolvedOptions = field(default_factory=lambda: resolved_options(DEFAULT_OPTIONS))
    """Field of DatasetOptions -> the value in use. `images` is None for the table's own folder, and all values are
    defaults for samples from Python."""


def read_table(path: str | Path, options: DatasetOptions = DEFAULT_OPTIONS, *, limit: int | None = None) -> Dataset:
    """Reads a table file, Parquet shards, a saved Hugging Face dataset or a folder of images.

    `limit` keeps the first rows only; docs/datasets.md describes files, columns and benchmarks. Image files are
    first read when they are decoded, and images inside the table stay there until then. Every column without a
    role is an extra, except for columns of bytes; extras keep their values, which are text in CSV and TSV.

    Raises MidsightError for a problem of the whole table: a file that cannot be read or has an unknown format, a
    missing column, repeated ids.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise MidsightError(Option("limit"), f" is {limit}; give 1 or more.")
    table = _open(path, options, limit)
    root = table.root if options.images is None else Path(options.images)
    if not is_folder(root):
        raise MidsightError(f"{root} is not a folder; name the folder of the images with ", Option("images"), ".")
    roles = assign_roles(table, options)
    make = SampleMaker(table, roles, root, allow_urls=options.allow_urls)
    numbers = array("q")

    def read() -> Iterator[SampleOrFailure]:
        for index, row in enumerate(itertools.islice(table.rows(roles.image), limit)):
            numbers.append(row.number)
            yield make(row, index)

    rows = make.add_images_of_other_rows(list(read())) if roles.benchmark == "vlmevalkit" else read()
    not_extras = roles.not_extras | table.binary_columns
    extra_names = [name for name in table.columns if name not in not_extras]
    samples, failures, extras = _collect(rows, extra_names, lambda index: f"{table.unit} {numbers[index]}", str(path))
    images = None if root.resolve() == table.root.resolve() else root
    resolved = resolved_options(options, images=images, columns=roles.as_options())
    return Dataset(samples, failures, extras, table.sha256, path, len(numbers), resolved)


def _open(path: Path, options: DatasetOptions, limit: int | None) -> Table:
    if options.question is None:
        return open_table(path, options.split, limit)
    if is_folder(path) and options.split is None:
        return image_folder(path, options.question)
    raise MidsightError(f"{path} is not a folder of images; leave ", Option("question"), " out, a table has its own.")


def _collect(
    rows: Iterable[SampleOrFailure], extras: Iterable[str], location: Callable[[int], str], dataset: str
) -> tuple[PackedSamples, tuple[Failure, ...], dict[str, ExtraType]]:
    """Samples, failures and the types of the extras; raises MidsightError for repeated ids."""
    samples, failures, types, hashes = PackedSamples(), list[Failure](), ExtraTypes(extras), array("q")
    for row in rows:
        hashes.append(hash(row.sample_id))
        if isinstance(row, Failure):
            failures.append(row)
        else:
            types.add(row.extras)
            samples.append(row)
    _validate_unique_ids(hashes, itertools.chain(samples, failures), location, dataset)
    return samples, tuple(failures), types.types()


def make_samples(items: Iterable[tuple[ImageSource | str, str] | Sample]) -> Dataset:
    """The dataset of (image, question) pairs and Samples, in their order.

    An image is a path, encoded bytes or a decoded image. Paths may lead anywhere, because the caller chose them.
    A Sample keeps its id, and its `input_index` becomes its index in the list. `sha256` covers ids, image references
    and questions, but no pixels.

    Raises MidsightError for an item that is neither a pair nor a Sample, and for repeated ids.
    """
    rows = [_validated(_sample_of(item, index)) for index, item in enumerate(items)]
    hashes = array("q", (hash(row.sample_id) for row in rows))
    _validate_unique_ids(hashes, rows, lambda index: f"item {index}", "The list of samples")
    digest, types = hashlib.sha256(), ExtraTypes(())
    for row in rows:
        content = [row.sample_id]
        if isinstance(row, Sample):
            types.add(row.extras)
            content += [row.image, row.question]
        digest.update(json.dumps(content).encode() + b"\n")
    samples = tuple(row for row in rows if isinstance(row, Sample))
    failures = tuple(row for row in rows if isinstance(row, Failure))
    return Dataset(samples, failures, types.types(), digest.hexdigest(), None, len(rows))


def _sample_of(item: Any, index: int) -> Sample:
    match item:
        case Sample():
            return replace(item, input_index=index)
        case (str() | Path() as image, str() as question):
            reference, source = str(image), Path(image)
        case (bytes() | Image.Image() as image, str() as question):
            reference, source = "", image
        case _:
            raise MidsightError(
                f"Item {index} is {reprlib.repr(item)}; give (image, question) pairs, the image as path, bytes or "
                "PIL image and the question as text, or Sample objects."
            )
    return Sample(make_sample_id(index, reference, question), index, (source,), question, image=reference)


def _validated(sample: Sample) -> SampleOrFailure:
    """The sample, or the failure that says why it cannot be extracted."""
    try:
        validate_question(sample.question)
        validate_storable(
            [sample.sample_id, sample.image, sample.question, sample.reference_answers, dict(sample.extras)]
        )
        if not sample.images:
            raise SampleError("there is no image.")
    except SampleError as error:
        return Failure(sample.sample_id, sample.input_index, f"Item {sample.input_index}: {error}")
    return sample


def _validate_unique_ids(
    hashes: array[int], rows: Iterable[SampleOrFailure], location: Callable[[int], str], dataset: str
) -> None:
    """Raises MidsightError for ids that repeat; `hashes` are those of all ids, because a set of ids takes more memory.

    `location` names a row in the message, from its index.
    """
    distinct, counts = np.unique(np.array(hashes, np.int64), return_counts=True)
    if len(distinct) == len(hashes):
        return
    repeated = {*distinct[counts > 1].tolist()}
    suspects = (row for row in rows if hash(row.sample_id) in repeated)
    seen: dict[str, int] = {}
    for row in sorted(suspects, key=attrgetter("input_index")):
        first = seen.setdefault(row.sample_id, row.input_index)
        if first != row.input_index:
            raise MidsightError(
                f"{dataset} has the id {row.sample_id!r} twice, in {location(first)} and {location(row.input_index)}; "
                "make ids unique, choose others with ",
                Option("id_column"),
                ", or leave them out.",
            )

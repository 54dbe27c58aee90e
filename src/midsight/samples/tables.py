"""Datasets in: tables, folders, and pairs from Python, as samples.

A row that cannot become a sample becomes a failure with its reason, and the others go on. What
concerns the table as a whole (no such column, ids that repeat) is a MidsightError.
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

from midsight.errors import MidsightError, SampleError
from midsight.samples.extras import ExtraKinds, ExtraType
from midsight.samples.outcomes import SampleMaker, check_question
from midsight.samples.packed import PackedSamples
from midsight.samples.rows import check_storable
from midsight.samples.sample import Failure, ImageSource, Sample, make_sample_id
from midsight.samples.shapes import ColumnOptions, assign_roles
from midsight.samples.sources import image_folder, is_folder, open_table
from midsight.samples.urls import url_options


@dataclass(frozen=True)
class Dataset:
    """Everything read from one dataset: each of its rows is either a sample or a failure."""

    samples: Sequence[Sample]
    """In dataset order; those of a table are packed."""
    failures: tuple[Failure, ...]
    """Rows that cannot become samples, in dataset order."""
    extras: Mapping[str, ExtraType]
    """The columns beyond image, question, answer and id, and the type that all their values fit."""
    sha256: str
    """Hex; of the file's bytes (of several files, of their digests), of a folder's image names, or of what
    `make_samples` was given."""
    path: Path | None
    """The table or folder; None when the samples come from Python."""
    rows: int
    """How many rows were read: samples and failures."""
    options: Mapping[str, str | bool | None] = field(default_factory=dict)
    """What else decides the meaning of a row, by the command's option: columns by role, and the folder of
    images where it is not the table's own. Empty for samples from Python."""


def read_table(
    path: str | Path,
    *,
    images: str | Path | None = None,
    image_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    question: str | None = None,
    split: str | None = None,
    allow_urls: bool = False,
    limit: int | None = None,
) -> Dataset:
    """The dataset in a table file, in Parquet shards, in a saved Hugging Face dataset or in a folder of images.

    docs/datasets.md says what goes in. Image paths are relative to `images`, by default the table's folder, and must
    lie inside it; several images are a list. Whether the files exist is found out when they are decoded. Images that
    the table itself holds, as bytes or base64, stay in it until then.

    The columns are `image`, `question`, `answer` (else `answers`, if there is one; text, a list of texts, or nothing;
    other values count as their JSON text) and `id` (if there is one; rows without an id get one from
    `make_sample_id`), or those of a known benchmark, or those named here. Every other column is an extra: its values
    stay as they are, are text in CSV and TSV, and those that hold bytes are left out. `question` makes a folder of
    images a dataset, `split` chooses among a folder's, `allow_urls` takes web addresses as images and downloads
    them when they are decoded, `limit` takes the first rows.

    Raises MidsightError, for the table as a whole: a file that cannot be read or whose format is not
    known, a missing column, ids that repeat.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise MidsightError(f"The limit is {limit}; give at least 1 row, or no limit.")
    if question is None:
        table = open_table(path, split, limit)
    elif is_folder(path) and split is None:
        table = image_folder(path, question)
    else:
        raise MidsightError(f"{path} is no folder of images; leave --question out, a table has its own.")
    root = table.root if images is None else Path(images)
    if not is_folder(root):
        raise MidsightError(f"The image folder {root} is no directory; name an existing one with --images.")
    roles = assign_roles(table, ColumnOptions(image_column, question_column, answer_column, id_column))
    make = SampleMaker(table, roles, root, allow_urls=allow_urls)
    numbers, hashes = array("q"), array("q")

    def outcomes() -> Iterator[Sample | Failure]:
        for index, row in enumerate(itertools.islice(table.rows(roles.image), limit)):
            numbers.append(row.number)
            yield make(row, index)

    samples, failures = PackedSamples(), list[Failure]()
    kinds = ExtraKinds(name for name in table.columns if name not in roles.names and name not in table.binary)
    lent = make.lend_images(list(outcomes())) if roles.shape == "vlmevalkit" else outcomes()
    for outcome in lent:
        hashes.append(hash(outcome.sample_id))
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            kinds.add(outcome.extras)
            samples.append(outcome)
    everything = itertools.chain(samples, failures)
    _refuse_repeated_ids(hashes, everything, lambda index: f"{table.unit} {numbers[index]}", str(path))
    folder = None if root.resolve() == table.root.resolve() else str(root.resolve())
    options = {
        "--images": folder,
        "--question": question,
        "--split": split,
        **roles.as_options(),
        **url_options(allow_urls),
    }
    return Dataset(samples, tuple(failures), kinds.types(), table.sha256, path, len(numbers), options)


def make_samples(items: Iterable[tuple[ImageSource | str, str] | Sample]) -> Dataset:
    """The dataset of (image, question) pairs, in their order; Samples may stand among them.

    Images are paths (not confined to a folder: the caller chose them), encoded bytes or decoded
    images. A Sample keeps its id and gets its place as `input_index`. `sha256` covers ids, image
    references and questions, not pixels.

    Raises MidsightError for an item that is neither, and for ids that repeat.
    """
    outcomes: list[Sample | Failure] = []
    for index, item in enumerate(items):
        sample = replace(item, input_index=index) if isinstance(item, Sample) else _sample_of_pair(item, index)
        try:
            check_question(sample.question)
            check_storable(
                [sample.sample_id, sample.image, sample.question, sample.reference_answers, dict(sample.extras)]
            )
            if not sample.images:
                raise SampleError("there is no image.")
            outcomes.append(sample)
        except SampleError as error:
            outcomes.append(Failure(sample.sample_id, index, f"Item {index}: {error}"))
    hashes = array("q", (hash(outcome.sample_id) for outcome in outcomes))
    _refuse_repeated_ids(hashes, outcomes, lambda index: f"item {index}", "The list of samples")
    digest, kinds = hashlib.sha256(), ExtraKinds(())
    for outcome in outcomes:
        asked = []
        if isinstance(outcome, Sample):
            kinds.add(outcome.extras)
            asked = [outcome.image, outcome.question]
        digest.update(json.dumps([outcome.sample_id, *asked]).encode() + b"\n")
    samples = tuple(outcome for outcome in outcomes if isinstance(outcome, Sample))
    failures = tuple(outcome for outcome in outcomes if isinstance(outcome, Failure))
    return Dataset(samples, failures, kinds.types(), digest.hexdigest(), None, len(outcomes))


def _sample_of_pair(item: Any, index: int) -> Sample:
    match item:
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


def _refuse_repeated_ids(
    hashes: array[int], outcomes: Iterable[Sample | Failure], place: Callable[[int], str], dataset: str
) -> None:
    """Raises MidsightError for ids that repeat; `hashes` are those of all ids, since a set of millions takes much."""
    distinct, counts = np.unique(np.array(hashes, np.int64), return_counts=True)
    if len(distinct) == len(hashes):
        return
    suspected = {*distinct[counts > 1].tolist()}
    seen: dict[str, int] = {}
    for outcome in sorted(
        (each for each in outcomes if hash(each.sample_id) in suspected), key=attrgetter("input_index")
    ):
        first = seen.setdefault(outcome.sample_id, outcome.input_index)
        if first != outcome.input_index:
            raise MidsightError(
                f"{dataset} has the id {outcome.sample_id!r} twice, in {place(first)} and "
                f"{place(outcome.input_index)}; make ids unique, choose others with --id-column, or leave them out."
            )

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

from midsight.buckets.path import Place, is_bucket_address, to_place
from midsight.errors import MidsightError, Option, RefusedError, RepeatedIdError, SampleError
from midsight.samples.answers import columns_to_join, join_answers, number_of_id, text_of_id
from midsight.samples.columns import ColumnSource, prompt_columns
from midsight.samples.embedded import embedded_bytes
from midsight.samples.extras import ExtraType, ExtraTypes
from midsight.samples.folders import image_folder, is_folder
from midsight.samples.in_memory import digest, memory_table, one_table
from midsight.samples.locations import ImageUrl, TextLocation
from midsight.samples.one_question import with_question
from midsight.samples.options import DEFAULT_OPTIONS, DatasetOptions, ResolvedOptions, resolved_options
from midsight.samples.packed import PackedSamples
from midsight.samples.places import find_place
from midsight.samples.questions import Questions
from midsight.samples.roles import Roles, assign_roles
from midsight.samples.row_to_sample import SampleMaker
from midsight.samples.rows import Table, validate_storable
from midsight.samples.sample import Failure, ImageSource, Sample, SampleOrFailure, make_sample_id
from midsight.samples.sources import BYTES_WITHOUT_ROWS, ROWS_LOOKED_AT, open_beginning, open_table
from midsight.samples.urls import is_web_address

AcceptColumns = Callable[[Mapping[str, ColumnSource]], object]
"""Raises MidsightError if a table with these columns, and where samples have them, is not the one that is wanted."""
Pair = tuple[ImageSource | str | Sequence[ImageSource | str], str]
"""An image, or several, and a question, from Python."""


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
    path: Place | None
    """The table or folder; None for samples from Python."""
    rows: int
    """Number of rows: samples and failures."""
    options: ResolvedOptions = field(default_factory=lambda: resolved_options(DEFAULT_OPTIONS))
    """Field of DatasetOptions -> the value in use. `images` is None for the table's own folder, and all values are
    defaults for samples from Python."""
    notes: tuple[str, ...] = ()
    """What the user should know about how it was read, one sentence each."""


def accept_all(_: Mapping[str, ColumnSource]) -> None:
    """An AcceptColumns for callers that need no columns beyond those with a role."""


def read_table(
    path: str | Path,
    options: DatasetOptions = DEFAULT_OPTIONS,
    *,
    limit: int | None = None,
    accept: AcceptColumns = accept_all,
) -> Dataset:
    """Reads a table file, a pattern or folder of shards, a saved Hugging Face dataset or a folder of images.

    Each may be on a disk, in a bucket or on the hub.

    `limit` keeps the first rows only. `accept` sees the columns of a large table with a header before its rows are
    read, and may refuse them. Image files are first read when they are decoded, and images inside the table stay there
    until then. Every column without a role is an extra, except for columns of bytes; extras keep their values, which
    are text in CSV and TSV.

    Raises MidsightError for a problem of the whole table: a file that cannot be read or has an unknown format, a
    missing column, repeated ids in a column that was named.
    """
    place = find_place(path)
    if limit is not None and limit < 1:
        raise MidsightError(Option("limit"), f" is {limit}; give 1 or more.")
    if options.images is not None:
        images = find_place(options.images)
        if not _may_be_folder(images):
            named = Option("images")
            raise MidsightError(f"{options.images} is not a folder; name the folder of the images with ", named, ".")
        options = replace(options, images=images)
    table, options = _open(place, options, limit, accept)
    return _read_with_roles(place, table, options, limit)


def _may_be_folder(path: Place) -> bool:
    """Whether the path is a folder; one that the user may not list is read image by image."""
    try:
        return is_folder(path)
    except RefusedError:
        return True


def read_memory(data: Any, options: DatasetOptions = DEFAULT_OPTIONS) -> Dataset:
    """Reads a table that Python holds, as `read_table` reads one from a file.

    Image paths start from the current folder, unless `options.images` names another. Raises MidsightError.
    """
    table = with_question(memory_table(one_table(data, options.split)), options)
    table, options = _with_answers(table, options)
    dataset = _read_with_roles(None, table, options, None)
    return replace(dataset, sha256=digest(dataset.samples))


def _read_with_roles(path: Place | None, table: Table, options: DatasetOptions, limit: int | None) -> Dataset:
    """All samples of a table; guessed ids that repeat are left out."""
    roles = assign_roles(table, options)
    try:
        return _read(path, table, roles, options, limit)
    except RepeatedIdError as error:
        if not roles.id_is_guessed:
            raise
        note = f"{error.problem}, so its rows get ids of their own, and {roles.id!r} is kept as an extra."
        roles = replace(roles, id=None, id_is_guessed=False, notes=(*roles.notes, note))
        return _read(path, table, roles, options, limit)


def _read(path: Place | None, table: Table, roles: Roles, options: DatasetOptions, limit: int | None) -> Dataset:
    """All samples of a table; raises RepeatedIdError if two rows have one id."""
    root = table.root if options.images is None else find_place(options.images)
    make = SampleMaker(table, roles, root, allow_urls=options.allow_urls, follow_links=options.follow_links)
    numbers = array("q")

    def read() -> Iterator[SampleOrFailure]:
        for index, row in enumerate(itertools.islice(table.rows(roles.images), limit)):
            numbers.append(row.number)
            yield make(row, index)

    rows = make.add_images_of_other_rows(list(read())) if roles.benchmark == "vlmevalkit" else read()
    name = str(path or table.path)
    samples, failures, extras = _collect(
        rows, _extras(table, roles), lambda index: f"{table.unit} {numbers[index]}", name
    )
    images = None if root.resolve() == table.root.resolve() else root
    resolved = resolved_options(options, images=images, columns=roles.as_options())
    notes = tuple(dict.fromkeys((*table.notes, *roles.notes, *make.notes())))
    return Dataset(samples, failures, extras, table.sha256(), path, len(numbers), resolved, notes)


def _extras(table: Table, roles: Roles) -> list[str]:
    """The columns that are known to be extras."""
    not_extras = roles.not_extras | table.binary_columns
    return [name for name in table.columns if name not in not_extras]


def _open(
    path: Place, options: DatasetOptions, limit: int | None, accept: AcceptColumns
) -> tuple[Table, DatasetOptions]:
    """The table, with its answers joined; and the options, with the column of those answers."""
    if options.question is not None and is_folder(path) and options.split is None:
        table = image_folder(path, options.question, follow_links=options.follow_links)
        return _with_answers(table, options)
    if beginning := open_beginning(path, options.split, limit):
        _validate_beginning(with_question(beginning, options), options, limit, accept)
    return _with_answers(with_question(open_table(path, options.split, limit), options), options)


def _validate_beginning(beginning: Table, options: DatasetOptions, limit: int | None, accept: AcceptColumns) -> None:
    """Raises MidsightError for a wrong table before all of it is read."""
    if options.answers_from is not None:
        columns_to_join(beginning, options)
        assign_roles(beginning, replace(options, answer_column=None))
        return
    roles = assign_roles(beginning, options)
    if beginning.kind in ("csv", "tsv", "parquet", "arrow"):  # in JSON, later rows may have other columns
        accept(prompt_columns(dict.fromkeys(_extras(beginning, roles), "string"), roles.as_options()))
    if roles.id is not None and not roles.id_is_guessed:
        _validate_first_ids(beginning, roles.id, min(limit or ROWS_LOOKED_AT, ROWS_LOOKED_AT))


def _validate_first_ids(table: Table, column: str, most: int) -> None:
    """Raises RepeatedIdError if one of the first rows, `most` at most, has the id of an earlier one."""
    seen: dict[str, int] = {}
    for row in itertools.islice(table.rows(()), most):
        if isinstance(row.location, TextLocation) and row.location.offset_bytes > BYTES_WITHOUT_ROWS:
            return
        try:
            found = text_of_id(number_of_id(row.cells.get(column), table.kind))
        except SampleError:
            continue
        if found is not None and (first := seen.setdefault(found, row.number)) != row.number:
            raise _repeated_id(str(table.path), found, f"{table.unit} {first}", f"{table.unit} {row.number}")


def _with_answers(table: Table, options: DatasetOptions) -> tuple[Table, DatasetOptions]:
    """The table with the answers of `options.answers_from`, if any; and the options, with the column of those."""
    if options.answers_from is not None:
        table, answer = join_answers(table, options)
        return table, replace(options, answer_column=answer)
    if options.on is not None:
        raise MidsightError(Option("on"), " goes with ", Option("answers_from"), "; add it, or leave both out.")
    return table, options


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


def make_samples(items: Iterable[Pair | Sample]) -> Dataset:
    """The dataset of (image, question) pairs and Samples, in their order.

    An image is a path, an address on the web or in a bucket, encoded bytes, a decoded image, or a list of these. Paths
    and addresses may lead anywhere, because the caller chose them.
    A Sample keeps its id, and its `input_index` becomes its index in the list. `sha256` covers ids, image references
    and questions, but no pixels.

    Raises MidsightError for an item that is neither a pair nor a Sample, and for repeated ids.
    """
    if not isinstance(items, Iterable):
        raise MidsightError(
            f"The data are a {type(items).__name__}; give a file, a folder, a table, or (image, question) pairs."
        )
    questions = Questions()
    rows = [_validated(_sample_of(item, index), questions) for index, item in enumerate(items)]
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
    notes = tuple(questions.notes())
    return Dataset(samples, failures, types.types(), digest.hexdigest(), None, len(rows), notes=notes)


def _sample_of(item: Any, index: int) -> Sample:
    if isinstance(item, Sample):
        return replace(item, input_index=index)
    match item:
        case (list() | tuple() as images, str() as question):
            shown = [found for image in images if (found := _image_of_pair(image))]
            complete = len(shown) == len(images) > 0
        case (image, str() as question):
            shown = [found] if (found := _image_of_pair(image)) else []
            complete = bool(shown)
        case _:
            shown, question, complete = [], "", False
    if not complete:
        raise MidsightError(
            f"Item {index} is {reprlib.repr(item)}; give (image, question) pairs, the image as path, bytes, PIL image, "
            "web address or a list of these and the question as text, or Sample objects."
        )
    references = [reference for reference, _ in shown]
    reference = references[0] if len(references) == 1 else json.dumps(references) if all(references) else ""
    sources = tuple(source for _, source in shown)
    return Sample(make_sample_id(index, reference, question), index, sources, question, image=reference)


def _image_of_pair(image: Any) -> tuple[str, ImageSource] | None:
    """Reference and source of an image that the caller gives; None if it is not an image."""
    match image:
        case str() if is_web_address(image):
            return image, ImageUrl(image)
        case str() if is_bucket_address(image):
            return image, to_place(image)
        case str() if image[:5].lower() == "data:" and (encoded := embedded_bytes(image)) is not None:
            return "", encoded
        case str() | Path():
            return str(image), Path(image)
        case bytes() | Image.Image():
            return "", image
    return None


def _validated(sample: Sample, questions: Questions) -> SampleOrFailure:
    """The sample, or the failure that says why it cannot be extracted."""
    try:
        place = f"item {sample.input_index}"
        sample = replace(sample, question=questions.clean(sample.question, place=lambda: place))
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
            raise _repeated_id(dataset, row.sample_id, location(first), location(row.input_index))


def _repeated_id(dataset: str, sample_id: str, first: str, second: str) -> RepeatedIdError:
    problem = f"{dataset} has the id {sample_id!r} twice, in {first} and {second}"
    return RepeatedIdError(
        problem, "; make ids unique, choose others with ", Option("id_column"), ", or leave them out."
    )

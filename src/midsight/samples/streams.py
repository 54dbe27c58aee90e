"""Hugging Face datasets by name, streamed from the Hub; only a bounded look-ahead is kept in memory."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from midsight.errors import BrokenOffError, MidsightError, Option, RepeatedIdError, first_line
from midsight.samples.columnar import binary_columns
from midsight.samples.extras import ExtraType, type_of_column
from midsight.samples.one_question import with_question
from midsight.samples.options import DEFAULT_OPTIONS, DatasetOptions, ResolvedOptions, resolved_options
from midsight.samples.places import find_place
from midsight.samples.roles import Roles, assign_roles
from midsight.samples.row_to_sample import SampleMaker
from midsight.samples.rows import Row, Table
from midsight.samples.sample import Failure, Sample, SampleOrFailure, make_sample_id

LOOK_AHEAD_ROWS = 1_000
LOOK_AHEAD_BYTES = 256_000_000

T = TypeVar("T")

_NAME = re.compile(r"hf://(?:datasets/)?(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<config>[^/@]+))?(?:@(?P<revision>\S+))?")


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face Hub, spelled `hf://[datasets/]owner/name[/config][@revision]`."""

    repository: str
    """owner/name."""
    config: str | None
    """Name of the dataset's configuration."""
    revision: str | None
    """Branch, tag, commit or a ref like refs/convert/parquet."""

    @classmethod
    def parse(cls, name: str) -> HubDataset:
        """The dataset with this name; raises MidsightError if the name is spelled differently."""
        matched = _NAME.fullmatch(name)
        if matched is None:
            raise MidsightError(f"{name!r} is not a dataset of the Hub; write hf://owner/name[/config][@revision].")
        return cls(matched["repository"], matched["config"], matched["revision"])


@dataclass(frozen=True)
class SampleStream:
    """A dataset that is read from its beginning, row by row; an image is in memory as long as its sample is."""

    name: str
    """As the user named it."""
    sha256: str
    """Hex hash of the stream's identity: repository, configuration, commit and split."""
    revision: str | None
    """Commit of the Hub that is streamed."""
    extras: Mapping[str, ExtraType]
    """Column beyond image, question, answer and id -> how it is stored."""
    options: ResolvedOptions
    """Field of DatasetOptions -> the value in use."""
    rows: Callable[[], Iterator[SampleOrFailure]]
    """Starts the stream; each row is a sample or a failure. Iterating raises BrokenOffError and RepeatedIdError."""
    notes: tuple[str, ...] = ()
    """What the user should know about how it is read, one sentence each."""
    notes_of_rows: Callable[[], Sequence[str]] = tuple
    """What the user should know about the rows that were read last, one sentence each."""


def open_hub(name: str, options: DatasetOptions = DEFAULT_OPTIONS) -> SampleStream:
    """The rows of a dataset on the Hub, at the commit that its revision names now.

    Images that rows only name are read from the folder `options.images`. Raises MidsightError if the package
    `datasets` is not installed, or if the dataset cannot be opened.
    """
    if options.answers_from is not None or options.on is not None:
        joined = Option("on") if options.answers_from is None else Option("answers_from")
        raise MidsightError(joined, f" is for tables, and {name} is a stream; leave it out.")
    hub = HubDataset.parse(name)
    commit, split, dataset = _load(hub, options.split)
    identity = hashlib.sha256(f"{hub.repository}/{hub.config}@{commit}:{split}".encode()).hexdigest()
    return stream_rows(dataset, name, identity, options, revision=commit)


def stream_rows(
    dataset: Any, name: str, sha256: str, options: DatasetOptions = DEFAULT_OPTIONS, *, revision: str | None = None
) -> SampleStream:
    """The rows of an IterableDataset of the package `datasets`, with images as encoded bytes.

    `name`, `sha256` and `revision` are those of the SampleStream. Raises MidsightError for a dataset without rows or
    without the columns that `options` name, and BrokenOffError if its first rows cannot be read.
    """
    features = dataset.features
    if features is None:
        features = _features_of_first_rows(dataset, name)
    if not features:
        raise MidsightError(f"{name} has no rows.")
    schema = features.arrow_schema
    binary = binary_columns(schema)

    def rows(images: Collection[str]) -> Iterator[Row]:
        return _read_rows(dataset, name, [column for column in features if column in images or column not in binary])

    table = Table(name, "stream", "row", tuple(features), lambda: sha256, rows, Path(), binary)
    table = with_question(table, options)
    roles = assign_roles(table, options)
    roles = replace(roles, id_is_extra=roles.id_is_guessed)
    images = None if options.images is None else find_place(options.images)
    not_extras = roles.not_extras | binary
    maker = partial(SampleMaker, table, roles, images, allow_urls=options.allow_urls, follow_links=options.follow_links)
    reading: list[_Reading] = []

    def start() -> Iterator[SampleOrFailure]:
        reading[:] = [_Reading(name, maker(), roles)]
        return reading[0].samples(table.rows(roles.images))

    return SampleStream(
        name=name,
        sha256=sha256,
        revision=revision,
        extras={column: type_of_column(schema.field(column).type) for column in features if column not in not_extras},
        options=resolved_options(options, images=images, columns=roles.as_options()),
        rows=start,
        notes=roles.notes,
        notes_of_rows=lambda: [note for each in reading for note in each.notes()],
    )


def grouped(
    rows: Iterable[SampleOrFailure], look_ahead: int = LOOK_AHEAD_ROWS, max_bytes: int = LOOK_AHEAD_BYTES
) -> Iterator[SampleOrFailure]:
    """The rows, with samples on one image next to each other as far as the look-ahead reaches.

    At most `look_ahead` rows are held, and no more once their images take `max_bytes` of memory. A sample that comes
    less than `look_ahead` rows after the first one on its image is yielded after it and shares its images; images and
    failures keep the order in which they appear, so that nobody sees only failures while good samples are held. If the
    stream breaks off, the rows held are yielded before the error is raised.
    """
    if look_ahead < 1:
        raise MidsightError(f"The look-ahead is {look_ahead}; give at least 1 sample.")
    groups: dict[str | Failure, list[Sample]] = {}
    held = held_bytes = 0
    broken: list[MidsightError] = []
    for row in until_broken(rows, broken):
        if isinstance(row, Failure):
            groups[row] = []
        elif row.image_key in groups:
            group = groups[row.image_key]
            group.append(replace(row, images=group[0].images))
        else:
            groups[row.image_key] = [row]
            held_bytes += _bytes_in_memory(row)
        held += 1
        while groups:
            first = next(iter(groups))
            if held < look_ahead and held_bytes <= max_bytes and not isinstance(first, Failure):
                break
            group = groups.pop(first)
            held -= len(group) or 1
            held_bytes -= sum(map(_bytes_in_memory, group[:1]))
            yield from [first] if isinstance(first, Failure) else group
    for first, group in groups.items():
        yield from [first] if isinstance(first, Failure) else group
    if broken:
        raise broken[0]


def until_broken(items: Iterable[T], broken: list[MidsightError]) -> Iterator[T]:
    """The items until the stream breaks off; the error is then appended to `broken` and not raised.

    So the caller can finish the items that have arrived before it raises the error.
    """
    try:
        yield from items
    except (BrokenOffError, RepeatedIdError) as error:
        broken.append(error)


def _bytes_in_memory(sample: Sample) -> int:
    return sum(len(image) for image in sample.images if isinstance(image, bytes))


def _features_of_first_rows(dataset: Any, name: str) -> Any:
    """Column types found by `datasets` in the first rows, for files that do not declare them."""
    try:
        return dataset._resolve_features().features
    except Exception as error:
        raise BrokenOffError(f"{name} cannot be read: {first_line(error)}; try the same call again.") from error


def _read_rows(dataset: Any, name: str, columns: list[str]) -> Iterator[Row]:
    # Types found in the first rows are not forced on the others: a value that does not fit fails alone.
    typed = dataset.features is not None
    arriving = iter(dataset.select_columns(columns).decode(False) if typed else dataset)
    for number in itertools.count(1):
        try:
            cells = next(arriving)
        except StopIteration:
            return
        except Exception as error:  # the network and the readers of formats raise many types
            raise _broken_off(name, number - 1, error) from error
        yield Row(number, "", {column: cells.get(column) for column in columns})


def _broken_off(name: str, rows: int, error: Exception) -> BrokenOffError:
    problem = f"{name} broke off after row {rows}: {first_line(error)}; "
    if isinstance(error, ValueError | TypeError):
        remedy = "if its files disagree on a type, stream its @refs/convert/parquet into another "
        return BrokenOffError(problem, remedy, Option("out"), ".")
    return BrokenOffError(problem, "the same call resumes from what is stored.")


class _Reading:
    """The rows of a stream on their way to samples, from its beginning."""

    def __init__(self, name: str, make: SampleMaker, roles: Roles) -> None:
        """`name` is the stream's, for messages."""
        self._name = name
        self._make = make
        self._roles = roles
        self._repeated = 0

    def samples(self, rows: Iterator[Row]) -> Iterator[SampleOrFailure]:
        """The samples and failures of the rows.

        A row with an id that came before gets one of its own, which is the same each time that the stream is read;
        if the user named the column of ids, RepeatedIdError is raised.
        """
        seen: set[str] = set()
        for index, row in enumerate(rows):
            made = self._make(row, index)
            if made.sample_id in seen and self._roles.id_is_guessed:
                self._repeated += 1
                text = f"{made.image}\0{made.question}" if isinstance(made, Sample) else made.reason
                made = replace(made, sample_id=make_sample_id(index, made.sample_id, text))
            if made.sample_id in seen:
                raise RepeatedIdError(
                    f"{self._name} has the id {made.sample_id!r} twice, the second time in row {row.number}; the rows "
                    "before it are stored; choose other ids with ",
                    Option("id_column", "none"),
                    " and another ",
                    Option("out"),
                    ".",
                )
            seen.add(made.sample_id)
            yield made

    def notes(self) -> list[str]:
        """What is to be said about the rows read so far, one sentence each."""
        notes = self._make.notes()
        if self._repeated:
            notes.append(
                f"In {self._repeated:,} of the rows of {self._name}, the id in the column {self._roles.id!r} came "
                "before; such rows have ids of their own, and the column is an extra."
            )
        return notes


def _load(hub: HubDataset, split: str | None) -> tuple[str, str, Any]:
    """Commit, split, and the IterableDataset."""
    try:
        datasets, hub_client = import_module("datasets"), import_module("huggingface_hub")
    except ImportError:
        raise MidsightError(
            "hf:// needs the package datasets; install it with: pip install 'midsight[datasets]'."
        ) from None
    try:
        commit = hub_client.HfApi().dataset_info(hub.repository, revision=hub.revision).sha
        loaded = datasets.load_dataset(hub.repository, hub.config, split=split, revision=commit, streaming=True)
    except Exception as error:  # the network, the Hub and the readers of formats raise many types
        reason = " ".join(str(error).split()).rstrip(".")
        raise MidsightError(f"hf://{hub.repository} cannot be opened: {reason}.") from error
    if split is None and isinstance(loaded, Mapping):
        if len(loaded) != 1:
            problem = f"hf://{hub.repository} has the splits {', '.join(loaded)}; choose one with "
            raise MidsightError(problem, Option("split"), ".")
        split, loaded = next(iter(loaded.items()))
    return str(commit), str(split), loaded

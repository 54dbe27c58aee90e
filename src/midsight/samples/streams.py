"""Hugging Face datasets by name, read while they arrive: nothing of them is kept but a bounded look-ahead."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from midsight.errors import BrokenOffError, MidsightError, RepeatedIdError, first_line
from midsight.samples.columnar import binary_columns
from midsight.samples.extras import ExtraType, type_of_column
from midsight.samples.outcomes import SampleMaker
from midsight.samples.rows import Row, Table
from midsight.samples.sample import Failure, Sample
from midsight.samples.shapes import ColumnOptions, assign_roles
from midsight.samples.urls import url_options

HUB_PREFIX = "hf://"
LOOK_AHEAD_ROWS = 1_000
LOOK_AHEAD_BYTES = 256_000_000

T = TypeVar("T")

_NAME = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<config>[^/@]+))?(?:@(?P<revision>\S+))?")


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face Hub, spelled `hf://owner/name[/config][@revision]`."""

    repository: str
    """owner/name."""
    config: str | None
    """Which of its configurations."""
    revision: str | None
    """Branch, tag, commit or a ref like refs/convert/parquet."""

    @classmethod
    def parse(cls, name: str) -> HubDataset:
        """The dataset that a name spells; raises MidsightError for another name."""
        matched = _NAME.fullmatch(name)
        if matched is None:
            raise MidsightError(f"{name!r} is no dataset of the Hub; write hf://owner/name[/config][@revision].")
        return cls(matched["repository"], matched["config"], matched["revision"])


@dataclass(frozen=True)
class SampleStream:
    """A dataset that is read once, from its beginning; images are in memory only while their sample is."""

    name: str
    """As the user named it."""
    sha256: str
    """Hex; of what is streamed: repository, configuration, commit and split."""
    revision: str | None
    """Commit of the Hub that is streamed."""
    extras: Mapping[str, ExtraType]
    """The columns beyond image, question, answer and id, and how they are stored."""
    options: Mapping[str, str | bool | None]
    """What else decides the meaning of a row, by the command's option."""
    outcomes: Callable[[], Iterator[Sample | Failure]]
    """Starts the stream: for each row a sample or why there is none. Raises BrokenOffError, RepeatedIdError."""


def open_hub(
    name: str,
    *,
    split: str | None = None,
    images: Path | None = None,
    allow_urls: bool = False,
    columns: ColumnOptions | None = None,
) -> SampleStream:
    """The rows of a dataset on the Hub, pinned to the commit that its revision names now.

    `images` is the folder of images that rows only name; `allow_urls` takes web addresses as images. Raises
    MidsightError where the package `datasets` is missing, and for what cannot be opened.
    """
    hub = HubDataset.parse(name)
    commit, chosen, rows = _load(hub, split)
    identity = hashlib.sha256(f"{hub.repository}/{hub.config}@{commit}:{chosen}".encode()).hexdigest()
    return stream_rows(
        rows, name, identity, revision=commit, split=split, images=images, allow_urls=allow_urls, columns=columns
    )


def stream_rows(
    dataset: Any,
    name: str,
    sha256: str,
    *,
    revision: str | None = None,
    split: str | None = None,
    images: Path | None = None,
    allow_urls: bool = False,
    columns: ColumnOptions | None = None,
) -> SampleStream:
    """The rows of an IterableDataset of the package `datasets`, images as they are encoded."""
    features = dataset.features
    declared = features is not None
    if not declared:
        try:
            features = dataset._resolve_features().features
        except Exception as error:  # it reads the first rows
            raise BrokenOffError(f"{name} cannot be read: {first_line(error)}; try the same command again.") from error
    if not features:
        raise MidsightError(f"{name} has no rows.")
    schema = features.arrow_schema
    binary = binary_columns(schema)

    def rows(image: str) -> Iterator[Row]:
        wanted = [column for column in features if column == image or column not in binary]
        # Types that only the first rows tell are not forced on the others: a value that does not fit fails alone.
        arriving = iter(dataset.select_columns(wanted).decode(False) if declared else dataset)
        for number in itertools.count(1):
            try:
                cells = next(arriving)
            except StopIteration:
                return
            except Exception as error:  # the network and the readers of formats raise many types
                mend = "the same command goes on from what is stored"
                if isinstance(error, ValueError | TypeError):
                    mend = "where its files disagree on a type, stream its @refs/convert/parquet into another --out"
                raise BrokenOffError(
                    f"{name} broke off after row {number - 1}: {first_line(error)}; {mend}."
                ) from error
            yield Row(number, "", {column: cells.get(column) for column in wanted})

    table = Table(name, "stream", "row", tuple(features), sha256, rows, Path(), binary)
    roles = assign_roles(table, columns or ColumnOptions())
    extras = [column for column in table.columns if column not in roles.names and column not in binary]
    folder = None if images is None else str(images.resolve())
    return SampleStream(
        name=name,
        sha256=sha256,
        revision=revision,
        extras={column: type_of_column(schema.field(column).type) for column in extras},
        options={"--images": folder, "--split": split, **roles.as_options(), **url_options(allow_urls)},
        outcomes=lambda: _outcomes(
            table.rows(roles.image), SampleMaker(table, roles, images, allow_urls=allow_urls), name
        ),
    )


def grouped(
    outcomes: Iterable[Sample | Failure], look_ahead: int = LOOK_AHEAD_ROWS, max_bytes: int = LOOK_AHEAD_BYTES
) -> Iterator[Sample | Failure]:
    """The samples with those of one image together, as far as the look-ahead reaches; failures pass at once.
    Where the stream breaks off, what is held comes first and then the error.

    At most `look_ahead` samples are held, and as many as have no more than `max_bytes` of images in memory. All
    samples of an image that come less than `look_ahead` rows after its first one follow that one, and share its
    images; images keep the order in which they appear.
    """
    if look_ahead < 1:
        raise MidsightError(f"The look-ahead is {look_ahead}; give at least 1 sample.")
    groups: dict[str, list[Sample]] = {}
    held = held_bytes = 0
    broken: list[MidsightError] = []
    for outcome in until_broken(outcomes, broken):
        if isinstance(outcome, Failure):
            yield outcome
            continue
        key = outcome.image_key
        if key in groups:
            groups[key].append(replace(outcome, images=groups[key][0].images))
        else:
            groups[key] = [outcome]
            held_bytes += _size(outcome)
        held += 1
        while groups and (held >= look_ahead or held_bytes > max_bytes):
            group = groups.pop(next(iter(groups)))
            held -= len(group)
            held_bytes -= _size(group[0])
            yield from group
    for group in groups.values():
        yield from group
    if broken:
        raise broken[0]


def until_broken(items: Iterable[T], broken: list[MidsightError]) -> Iterator[T]:
    """The items; where they break off it ends, and the error is in `broken`: what has come is good."""
    try:
        yield from items
    except (BrokenOffError, RepeatedIdError) as error:
        broken.append(error)


def _size(sample: Sample) -> int:
    return sum(len(image) for image in sample.images if isinstance(image, bytes))


def _outcomes(rows: Iterator[Row], make: SampleMaker, name: str) -> Iterator[Sample | Failure]:
    seen: set[str] = set()
    for index, row in enumerate(rows):
        outcome = make(row, index)
        if outcome.sample_id in seen:
            raise RepeatedIdError(
                f"{name} has the id {outcome.sample_id!r} twice, the second time in row {row.number}; what came before "
                "is stored; choose other ids with --id-column and another --out."
            )
        seen.add(outcome.sample_id)
        yield outcome


def _load(hub: HubDataset, split: str | None) -> tuple[str, str, Any]:
    """The commit, the split, and the rows as they arrive."""
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
            raise MidsightError(f"hf://{hub.repository} has the splits {', '.join(loaded)}; choose one with --split.")
        split, loaded = next(iter(loaded.items()))
    return str(commit), str(split), loaded

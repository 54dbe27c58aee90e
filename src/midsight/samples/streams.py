"""Hugging Face datasets by name, read while they arrive: nothing of them is kept but a bounded look-ahead."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError
from midsight.samples.columnar import binary_columns
from midsight.samples.outcomes import SampleMaker
from midsight.samples.rows import Row, Table
from midsight.samples.sample import Failure, Sample
from midsight.samples.shapes import ColumnOptions, assign_roles

HUB_PREFIX = "hf://"
LOOK_AHEAD_ROWS = 1_000
LOOK_AHEAD_BYTES = 256_000_000

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
    extras: tuple[str, ...]
    """The columns beyond image, question, answer and id."""
    outcomes: Callable[[], Iterator[Sample | Failure]]
    """Starts the stream: for each row a sample or why there is none. Raises MidsightError for an id that repeats."""


def open_hub(
    name: str, *, split: str | None = None, images: Path | None = None, columns: ColumnOptions | None = None
) -> SampleStream:
    """The rows of a dataset on the Hub, pinned to the commit that its revision names now.

    `images` is the folder of images that rows only name. Raises MidsightError where the package `datasets` is
    missing, and for what cannot be opened.
    """
    hub = HubDataset.parse(name)
    commit, chosen, rows = _load(hub, split)
    identity = hashlib.sha256(f"{hub.repository}/{hub.config}@{commit}:{chosen}".encode()).hexdigest()
    return stream_rows(rows, name, identity, images=images, columns=columns)


def stream_rows(
    dataset: Any, name: str, sha256: str, *, images: Path | None = None, columns: ColumnOptions | None = None
) -> SampleStream:
    """The rows of an IterableDataset of the package `datasets`, images as they are encoded."""
    features = dataset.features
    if features is None:
        dataset = dataset._resolve_features()
        features = dataset.features
    if not features:
        raise MidsightError(f"{name} has no rows.")
    binary = binary_columns(features.arrow_schema)

    def rows(image: str) -> Iterator[Row]:
        wanted = [column for column in features if column == image or column not in binary]
        for number, cells in enumerate(dataset.select_columns(wanted).decode(False), start=1):
            yield Row(number, "", cells)

    table = Table(name, "stream", "row", tuple(features), sha256, rows, Path(), binary)
    roles = assign_roles(table, columns or ColumnOptions())
    extras = tuple(column for column in table.columns if column not in roles.names and column not in binary)
    return SampleStream(
        name, sha256, extras, lambda: _outcomes(table.rows(roles.image), SampleMaker(table, roles, images), name)
    )


def grouped(
    samples: Iterable[Sample], look_ahead: int = LOOK_AHEAD_ROWS, max_bytes: int = LOOK_AHEAD_BYTES
) -> Iterator[Sample]:
    """The samples with those of one image together, as far as the look-ahead reaches.

    At most `look_ahead` samples are held, and as many as have no more than `max_bytes` of images in memory. All
    samples of an image that come less than `look_ahead` rows after its first one follow that one, and share its
    images; images keep the order in which they appear.
    """
    if look_ahead < 1:
        raise MidsightError(f"The look-ahead is {look_ahead}; give at least 1 sample.")
    groups: dict[str, list[Sample]] = {}
    held = held_bytes = 0
    for sample in samples:
        key = sample.image or sample.sample_id
        if key in groups:
            groups[key].append(replace(sample, images=groups[key][0].images))
        else:
            groups[key] = [sample]
            held_bytes += _size(sample)
        held += 1
        while groups and (held >= look_ahead or held_bytes > max_bytes):
            group = groups.pop(next(iter(groups)))
            held -= len(group)
            held_bytes -= _size(group[0])
            yield from group
    for group in groups.values():
        yield from group


def _size(sample: Sample) -> int:
    return sum(len(image) for image in sample.images if isinstance(image, bytes))


def _outcomes(rows: Iterator[Row], make: SampleMaker, name: str) -> Iterator[Sample | Failure]:
    seen: set[str] = set()
    for index, row in enumerate(rows):
        outcome = make(row, index)
        if outcome.sample_id in seen:
            raise MidsightError(
                f"{name} has the id {outcome.sample_id!r} twice, the second time in row {row.number}; choose other "
                "ids with --id-column."
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

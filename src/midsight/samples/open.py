"""Opens any dataset that midsight takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError
from midsight.samples.in_memory import is_stream, is_table
from midsight.samples.options import DEFAULT_OPTIONS, DatasetOptions
from midsight.samples.places import HUB_PREFIX, is_hub_file
from midsight.samples.sample import Sample
from midsight.samples.streams import SampleStream, open_hub
from midsight.samples.tables import (
    AcceptColumns,
    Dataset,
    Pair,
    accept_all,
    make_samples,
    read_memory,
    read_table,
)

Data = Dataset | SampleStream | str | Path | Iterable[Sample | Pair | Mapping[str, Any]] | Any
"""What `open_dataset` takes, and what it returns."""


def open_dataset(
    data: Any, options: DatasetOptions = DEFAULT_OPTIONS, *, accept: AcceptColumns = accept_all
) -> Dataset | SampleStream:
    """The samples of a table file, Parquet shards, a saved Hugging Face dataset, a folder of images, or pairs.

    A list of dicts, a pandas or polars frame, an Arrow table and a `datasets.Dataset` are read like a table file.
    A name like hf://owner/name opens a dataset on the Hugging Face Hub, which is streamed. Any other text is a path, or
    an address: s3://, gs:// and az://, or hf://datasets/owner/name/file, which is downloaded.
    `options` apply to files and streams, and `accept` to files, as in `read_table`.

    Raises MidsightError for a dataset that cannot be opened.
    """
    if is_stream(data):
        raise MidsightError(
            f"the {type(data).__name__} is a stream; name the dataset as hf://owner/name, or load it without streaming."
        )
    if isinstance(data, Iterator):
        data = list(data)
    if is_table(data):
        return read_memory(data, options)
    if not isinstance(data, str | Path):
        return make_samples(data)
    if str(data).startswith(HUB_PREFIX) and not is_hub_file(data):
        return open_hub(str(data), options)
    return read_table(data, options, accept=accept)

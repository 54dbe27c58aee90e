"""A call of extract: its options are validated with model and dataset before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack, get_args

from rich.filesize import decimal

from midsight.checkpoints.loading import LoadedModel
from midsight.errors import MidsightError, Option, unknown_option
from midsight.extraction.describe import describe_run
from midsight.extraction.model import Model, load
from midsight.extraction.request import (
    REQUEST_OPTIONS,
    Request,
    RequestKeywords,
    ResolvedRequest,
    make_request,
    resolve,
    validate_choice,
)
from midsight.extraction.todo import Progress, Todo, choose, estimate_bytes
from midsight.samples.columns import prompt_columns
from midsight.samples.open import Data, open_dataset
from midsight.samples.options import DatasetKeywords, DatasetOptions
from midsight.samples.streams import SampleStream
from midsight.samples.tables import Dataset
from midsight.store.files import Shard, free_bytes, validate_shard
from midsight.store.schema import StoreDtype
from midsight.store.spec import RunSpec
from midsight.store.writer import samples_done

DATASET_OPTIONS = frozenset(DatasetKeywords.__annotations__)
OWN_OPTIONS = frozenset(
    ("model", "out", "batch_size", "store_dtype", "limit", "shard", "retry_failed", "commit_seconds", "on_progress")
)
"""The arguments of `extract` itself."""


class ExtractKeywords(DatasetKeywords, RequestKeywords, total=False):
    """All further arguments of `extract`: the fields of DatasetOptions and of Request."""


@dataclass(frozen=True)
class Job:
    """What one call of extract does."""

    data: Dataset | SampleStream
    """The samples."""
    model: LoadedModel
    """The model that extracts them."""
    request: ResolvedRequest
    """What is extracted from every sample."""
    spec: RunSpec
    """What run.json holds."""
    shard: Shard
    """Which shard of the data this call does."""
    limit: int | None
    """Process only the first rows, this many; None for all."""
    retry_failed: bool
    """Whether samples that failed before are tried again."""

    def todo(self, done: Collection[str]) -> Todo:
        """The work that is left after the samples with the ids `done`."""
        return choose(self.data, done, shard=self.shard, limit=self.limit)

    def before(self, todo: Todo, out: Path) -> Progress:
        """The progress of the run in `out` before `todo`; raises MidsightError if `todo` does not fit on its disk."""
        size = None
        if todo.remaining is not None and todo.remaining_images is not None:
            store_dtype = self.spec.request.store_dtype
            size = estimate_bytes(
                self.model, self.request, store_dtype, samples=todo.remaining, images=todo.remaining_images
            )
        progress = Progress(todo.samples, todo.images, todo.already, 0, 0, size, free_bytes(out))
        if size is not None and size > progress.free_bytes:
            raise MidsightError(
                f"{out} will take about {decimal(size)} more and its disk has {decimal(progress.free_bytes)} free; "
                "free some, choose another ",
                Option("out"),
                ", fewer ",
                Option("layers"),
                ", or ",
                Option("store_dtype", "float16"),
                ".",
            )
        return progress


def make_job(
    data: Data,
    *,
    model: Model | str | Path,
    store_dtype: StoreDtype = "float32",
    limit: int | None = None,
    shard: Shard = (0, 1),
    retry_failed: bool = False,
    **options: Unpack[ExtractKeywords],
) -> Job:
    """A call of extract with its options validated; raises MidsightError."""
    validate_choice("store_dtype", store_dtype, get_args(StoreDtype))
    if limit is not None and limit < 1:
        raise MidsightError(Option("limit"), f" is {limit}; give 1 or more.")
    validate_shard(shard)
    dataset_options, request = split_options(options)
    source = open_data(data, dataset_options)
    loaded = (model if isinstance(model, Model) else load(model)).loaded
    resolved = resolve(request, loaded, prompt_columns(source.extras, source.options))
    spec = describe_run(source, loaded, request, resolved, store_dtype)
    return Job(source, loaded, resolved, spec, shard, limit, retry_failed)


def open_data(data: Data, options: DatasetOptions) -> Dataset | SampleStream:
    """Opens the data; raises MidsightError if dataset options are given for samples from Python."""
    if isinstance(data, str | Path):
        return open_dataset(data, options)
    for name, value in asdict(options).items():
        if value not in (None, False):
            raise MidsightError(Option(name), " is for a file, a folder or an hf:// name; leave it out.")
    return data if isinstance(data, Dataset | SampleStream) else open_dataset(data)


def split_options(options: Mapping[str, Any]) -> tuple[DatasetOptions, Request]:
    """The keywords of a call as DatasetOptions and Request; raises MidsightError for a name that neither has."""
    for name in options:
        if name not in DATASET_OPTIONS | REQUEST_OPTIONS:
            raise unknown_option(name, DATASET_OPTIONS | REQUEST_OPTIONS | OWN_OPTIONS)
    of_dataset = {name: value for name, value in options.items() if name in DATASET_OPTIONS}
    of_request = {name: value for name, value in options.items() if name in REQUEST_OPTIONS}
    return DatasetOptions(**of_dataset), make_request(of_request)


def forecast(
    data: Data,
    *,
    model: Model | str | Path,
    out: str | Path,
    store_dtype: StoreDtype = "float32",
    limit: int | None = None,
    shard: Shard = (0, 1),
    retry_failed: bool = False,
    **options: Unpack[ExtractKeywords],
) -> Progress:
    """The progress of the run `out` before `extract` with the same arguments; writes nothing.

    `model` may be one that was loaded without weights. Raises MidsightError as `extract` would.
    """
    job = make_job(
        data,
        model=model,
        store_dtype=store_dtype,
        limit=limit,
        shard=shard,
        retry_failed=retry_failed,
        **options,
    )
    done = samples_done(Path(out), job.spec, shard=job.shard, retry_failed=job.retry_failed)
    return job.before(job.todo(done), Path(out))

"""What a call of extract asks for, judged as far as that needs no model: torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from midsight.buckets.path import Place, to_place
from midsight.checkpoints.headers import count_layers
from midsight.checkpoints.hub import find_small_files, require_known_family
from midsight.checkpoints.load_options import LoadKeywords, validate_loading
from midsight.checkpoints.tokenizer_files import declared_control_tokens
from midsight.errors import MidsightError, Option, unknown_option
from midsight.extraction.request import (
    REQUEST_OPTIONS,
    Request,
    RequestKeywords,
    is_whole,
    make_request,
    validate_choice,
    validate_request,
)
from midsight.extraction.same_run import require_same_call
from midsight.families.family_file import read_proof
from midsight.prompts.chat_template import validate_template_choice
from midsight.prompts.declaration import QUESTION
from midsight.prompts.prompt import validate_texts
from midsight.prompts.user_text import parse_user_text
from midsight.samples.columns import prompt_columns
from midsight.samples.in_memory import is_stream, is_table
from midsight.samples.open import Data, open_dataset
from midsight.samples.options import DatasetKeywords, DatasetOptions
from midsight.samples.streams import SampleStream
from midsight.samples.tables import AcceptColumns, Dataset, accept_all
from midsight.store.files import Shard, validate_shard
from midsight.store.hub import is_hub_address
from midsight.store.place import validate_place
from midsight.store.schema import StoreDtype

BatchSize = int | Literal["auto"]
"""Maximum number of samples in one call of the model, or as many as memory holds."""

DATASET_OPTIONS = frozenset(DatasetKeywords.__annotations__)
OWN_OPTIONS = frozenset(
    (
        "model", "out", "batch_size", "store_dtype", "limit", "shard", "retry_failed", "keep_going", "commit_seconds",
        "progress", "ray",
    )
)  # fmt: skip
"""The arguments of `extract` itself."""


class ExtractKeywords(DatasetKeywords, RequestKeywords, total=False):
    """All further arguments of `extract`: the fields of DatasetOptions and of Request."""


@dataclass(frozen=True)
class Task:
    """The data, the request and the run folder of one call of extract."""

    data: Dataset | SampleStream
    """The samples."""
    request: Request
    """What is extracted from every sample."""
    out: Place
    """The run folder."""
    store_dtype: StoreDtype
    """Type of the stored vectors' elements."""
    limit: int | None
    """Process only the first rows, this many; None for all."""
    shard: Shard
    """Which shard of the data this call does."""
    retry_failed: bool
    """Whether samples that failed before are tried again."""
    continues: bool
    """Whether the run folder is known to hold a run of this very call, before the model is open."""


def make_task(
    data: Data,
    *,
    model: str | Path | None,
    out: str | Place,
    store_dtype: StoreDtype = "float32",
    limit: int | None = None,
    shard: Shard = (0, 1),
    retry_failed: bool = False,
    loading: LoadKeywords | None = None,
    **options: Unpack[ExtractKeywords],
) -> Task:
    """A call of extract with its options judged; raises MidsightError.

    `model` is the folder or hub id, None for a model in memory; `loading` says how it is loaded.
    """
    validate_choice("store_dtype", store_dtype, get_args(StoreDtype))
    if limit is not None and not (is_whole(limit) and limit >= 1):
        raise MidsightError(Option("limit"), f" is {limit}; give 1 or more.")
    validate_shard(shard)
    loading = loading or {}
    validate_loading(loading)
    family = loading.get("family")
    if family is not None:
        read_proof(Path(family))
    dataset_options, request = split_options(options)
    if risk := request.risk:
        request = replace(request, probe=risk.probe)  # it is read once
    n_layers = validate_by_files(request, None if model is None else Path(model))
    validate_template_choice(request.prompt_template)
    if is_hub_address(out):
        raise MidsightError(
            Option("out", out),
            " is on the hub, where a run is only read; extract into a folder, and `midsight push` it.",
        )
    place = to_place(out)
    validate_place(place)
    opened = open_data(data, dataset_options, lambda columns: parse_user_text(request.prompt, columns))
    if isinstance(opened, Dataset) and not opened.rows:
        raise MidsightError(f"{opened.path or 'The dataset'} has no rows, so there is nothing to extract; give others.")
    parse_user_text(request.prompt, prompt_columns(opened.extras, opened.options))
    if model is not None:  # after the data, because a hub id's small files are downloaded
        files = find_small_files(model, revision=loading.get("revision")).path
        if family is None:
            require_known_family(files, str(model))
        n_layers = validate_by_files(request, files)
    continues = require_same_call(place, opened, request, store_dtype, model=model, loading=loading, n_layers=n_layers)
    return Task(opened, request, place, store_dtype, limit, shard, retry_failed, continues)


def validate_by_files(request: Request, folder: Path | None) -> int | None:
    """Raises MidsightError for options that the small files of a model refuse, which need not be in `folder`.

    Returns the number of decoder layers that they say; None if they do not.
    """
    n_layers = None if folder is None else count_layers(folder)
    validate_request(request, n_layers)
    validate_texts(request.prompt, request.system, lambda text: find_control_token(text, folder))
    return n_layers


def find_control_token(text: str, folder: Path | None) -> str | None:
    """The first control token that `text` spells out, as far as the files of a model folder tell."""
    tokens = () if folder is None or text in ("", QUESTION) else declared_control_tokens(folder)
    return next((token for token in sorted(tokens) if token in text), None)


def parse_batch_size(text: str) -> BatchSize:
    """The batch size that `text` spells; raises MidsightError if it is neither `auto` nor a whole number from 1."""
    with suppress(ValueError):
        return validate_batch_size("auto" if text == "auto" else int(text))
    raise MidsightError(Option("batch_size"), f" is {text}; give auto, or 1 or more.")


def validate_batch_size(batch_size: BatchSize) -> BatchSize:
    """Returns the batch size; raises MidsightError if it is neither `auto` nor a whole number from 1."""
    if batch_size != "auto" and (type(batch_size) is not int or batch_size < 1):
        raise MidsightError(Option("batch_size"), f" is {batch_size}; give auto, or 1 or more.")
    return batch_size


def validate_commit_seconds(commit_seconds: float) -> None:
    """Raises MidsightError unless this is a time."""
    if not isinstance(commit_seconds, int | float) or not commit_seconds >= 0:  # NaN would never be over
        raise MidsightError(Option("commit_seconds"), f" is {commit_seconds!r}; give a number from 0.")


def open_data(data: Data, options: DatasetOptions, accept: AcceptColumns = accept_all) -> Dataset | SampleStream:
    """Opens the data, with `accept` as in `read_table`; raises MidsightError if samples from Python have options."""
    if isinstance(data, Iterator):
        data = list(data)
    if isinstance(data, str | Path) or is_table(data) or is_stream(data):
        return open_dataset(data, options, accept=accept)
    for name, value in asdict(options).items():
        if value not in (None, False) and name != "allow_urls":  # the caller chose the addresses
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

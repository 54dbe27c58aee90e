"""The main job: a dataset through a model into a run folder, resumed from its last commit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

from midsight.analysis import Run
from midsight.checkpoints.loading import open_model
from midsight.errors import MidsightError, Option, counted
from midsight.extraction.display import display
from midsight.extraction.finished import open_finished, work_of_own_run
from midsight.extraction.job import make_job
from midsight.extraction.model import Model
from midsight.extraction.on_ray import extract_on_ray
from midsight.extraction.option_help import explains_options
from midsight.extraction.orders import Call, require_whole
from midsight.extraction.ray_cluster import Ray
from midsight.extraction.request import Request
from midsight.extraction.run_job import run_job
from midsight.extraction.task import BatchSize, ExtractKeywords, make_task, validate_batch_size
from midsight.extraction.todo import Progress
from midsight.reports.reasons import describe_reasons
from midsight.samples.open import Data
from midsight.samples.options import DatasetOptions
from midsight.store.files import Shard
from midsight.store.schema import StoreDtype


@explains_options(DatasetOptions, Request)
def extract(
    data: Data,
    *,
    model: Model | str | Path,
    out: str | Path,
    batch_size: BatchSize = "auto",
    store_dtype: StoreDtype = "float32",
    limit: int | None = None,
    shard: Shard = (0, 1),
    retry_failed: bool = False,
    keep_going: bool = False,
    commit_seconds: float = 60.0,
    progress: Callable[[Progress], None] | Literal["bar"] | None = "bar",
    ray: Ray | None = None,
    **options: Unpack[ExtractKeywords],
) -> Run:
    """Extracts a whole dataset into the run folder `out` and opens it.

    If `out` is a run, it resumes from its last commit; options that would make other rows are refused, and a finished
    run is opened at once. A sample that cannot be extracted becomes one of the run's failures, and the others
    continue; at the end a warning says how many failed and why.

    Args:
        data: A table file, Parquet shards, a saved Hugging Face dataset, an `hf://` name, a folder of images; a
            pandas or polars DataFrame, a `datasets.Dataset`, a list of dicts; or (image, question) pairs or Samples.
        model: A loaded model, or its folder or hub id.
        out: The run folder, or an address like `s3://bucket/run`; it is made if it does not exist.
        batch_size: Maximum number of samples in one call of the model; `auto` finds the
            fastest that memory holds.
        store_dtype: `float32` or `float16`, for the stored vectors.
        limit: Process only the first rows, this many; None for all.
        shard: (I, N) does shard I of N, from 0; several processes may fill one run, each with its own shard.
        retry_failed: Whether samples that failed before are tried again.
        keep_going: Whether to go on even if the first 100 samples all fail.
        commit_seconds: Maximum time between two commits, in seconds.
        progress: `bar` shows the progress, in a terminal, a notebook or as lines of a log; None shows nothing. A
            function is called with the progress, at the start and after every call of the model.
        ray: The Ray cluster whose workers extract, a midsight.Ray; None to extract in this process. Data and model are
            then files or names that every node can read.
        **options: Which data are used, as in midsight.DatasetOptions, and what is extracted, as in midsight.Request:

    Returns:
        The opened run.

    Raises:
        MidsightError: A call that cannot be carried out, or no sample could be extracted; the sentence names the
            argument and a remedy.
    """
    validate_batch_size(batch_size)
    if ray is not None:
        require_names(data, model, ray)
    ask = partial(
        make_task,
        data,
        model=None if isinstance(model, Model) else model,
        out=out,
        store_dtype=store_dtype,
        limit=limit,
        shard=shard,
        retry_failed=retry_failed,
        **options,
    )
    task = ask()
    if ray is not None:
        require_whole(task)
    work = work_of_own_run(task)
    with display(progress) as shown:
        if work is not None and work.todo.is_empty:
            run = open_finished(task, work, shown)
        elif ray is not None:
            call = Call(str(data), ask.keywords, {}, batch_size, commit_seconds, task.data.sha256)
            run = extract_on_ray(task, call, ray, work, keep_going=keep_going, shown=shown)
        else:
            job = make_job(task, model.loaded if isinstance(model, Model) else open_model(model))
            run = run_job(
                job,
                work,
                batch_size=batch_size,
                keep_going=keep_going,
                commit_seconds=commit_seconds,
                shown=shown,
            )
    tell_failures(run)
    return run


def require_names(data: Data, model: Model | str | Path, ray: Ray) -> None:
    """Raises MidsightError if the arguments of a call on a cluster are not what its nodes can read."""
    if not isinstance(ray, Ray):
        raise MidsightError(Option("ray"), f" is {ray!r}; give a midsight.Ray, like midsight.Ray('auto').")
    if not isinstance(data, str | Path):
        raise MidsightError(
            Option("ray"), " needs data that every node can read; give ", Option("data"), " as a file or a folder."
        )
    if isinstance(model, Model):
        raise MidsightError(
            Option("ray"), " loads the model in every worker; give ", Option("model"), " as a folder or hub id."
        )


def tell_failures(run: Run) -> None:
    """Warns of the samples of a run that failed; raises MidsightError if all did."""
    failures = run.failures()
    if not failures:
        return
    if not len(run):
        raise MidsightError(
            f"No sample could be extracted; {counted(len(failures), 'sample')} failed: {describe_reasons(failures)}; "
            f"midsight.open_run({str(run.path)!r}).failures() lists them."
        )
    warnings.warn(
        f"{counted(len(failures), 'sample')} failed, {len(run):,} stored: {describe_reasons(failures)}; "
        "run.failures() lists them.",
        stacklevel=3,
    )

"""The main job: a dataset through a model into a run folder, resumed from its last commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from midsight.analysis import Run, open_run
from midsight.extraction.budget import BatchSize, make_budget
from midsight.extraction.fill import fill
from midsight.extraction.job import ExtractKeywords, make_job
from midsight.extraction.model import Model
from midsight.extraction.todo import Progress
from midsight.samples.open import Data
from midsight.store.files import Shard
from midsight.store.schema import StoreDtype
from midsight.store.spec import is_run
from midsight.store.writer import RunWriter


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
    commit_seconds: float = 60.0,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **options: Unpack[ExtractKeywords],
) -> Run:
    """Extracts a whole dataset into the run folder `out` and opens it.

    If `out` is a run, it resumes from its last commit; options that would make other rows are refused. A sample
    that cannot be extracted becomes one of the run's failures, and the others continue.

    Args:
        data: A table file, Parquet shards, a saved Hugging Face dataset, an `hf://` name, a folder of images,
            (image, question) pairs, or Samples.
        model: A loaded model, or its folder or hub id.
        out: The run folder; it is made if it does not exist.
        batch_size: Maximum number of samples in one call of the model; `auto` measures what memory holds.
        store_dtype: `float32` or `float16`, for the stored vectors.
        limit: Process only the first `limit` rows.
        shard: (I, N) does shard I of N, from 0; several processes may fill one run, each with its own shard.
        retry_failed: Try samples that failed before again.
        commit_seconds: Maximum time between two commits, in seconds.
        on_progress: Called with the progress, at the start and after every call of the model.
        **options: The fields of DatasetOptions (columns, images, split, ...) and of Request (layers, positions,
            prompt, ...), each documented there.

    Returns:
        The opened run.

    Raises:
        MidsightError: A call that cannot be carried out; the sentence names the argument and a remedy.
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
    budget = make_budget(batch_size, job.model.device)
    out = Path(out)
    todo = None
    if not is_run(out):  # nothing is written if the whole run cannot fit
        todo = job.todo(())
        job.before(todo, out)
    with RunWriter(out, job.spec, shard=shard, retry_failed=retry_failed, commit_seconds=commit_seconds) as writer:
        fill(writer, job, todo or job.todo(writer.done), budget=budget, on_progress=on_progress)
    return open_run(out)

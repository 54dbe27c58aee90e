"""Risks for a whole dataset: a run without vectors and answers, which becomes one table."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

import pyarrow as pa

from midsight.checkpoints.loading import LoadedModel
from midsight.errors import counted
from midsight.extraction.display import display
from midsight.extraction.job import Job, make_job
from midsight.extraction.run_job import run_job
from midsight.extraction.score_task import make_score_task, unfinished_run, validate_table
from midsight.extraction.task import BatchSize, Task
from midsight.extraction.todo import Progress
from midsight.reports.reasons import describe_reasons
from midsight.reports.risks import risk_table, write_table
from midsight.samples.open import Data
from midsight.samples.options import DatasetKeywords
from midsight.store.probe import Probe, RiskOf
from midsight.store.reader import Run


def make_score_job(task: Task, model: LoadedModel) -> Job:
    """A task of scoring for one model, whose run stores no vectors; raises MidsightError."""
    job = make_job(task, model)
    read = job.request.risk.column if job.request.risk else ""
    taps = tuple(tap for tap in job.request.taps if str(tap) == read)
    return replace(job, request=replace(job.request, taps=taps, vectors={}), spec=replace(job.spec, vectors={}))


def score_data(
    model: LoadedModel,
    data: Data,
    probe: Probe | str | Path,
    *,
    out: Path | None,
    overwrite: bool,
    risk_of: RiskOf,
    prompt_template: str | Path,
    share: bool,
    batch_size: BatchSize,
    limit: int | None,
    retry_failed: bool,
    keep_going: bool,
    commit_seconds: float,
    progress: Callable[[Progress], None] | Literal["bar"] | None,
    **options: Unpack[DatasetKeywords],
) -> pa.Table:
    """The table that `Model.score` returns, and writes if `out` is given; raises MidsightError."""
    if out is not None:
        validate_table(out, overwrite=overwrite)
    with run_on_the_way(out) as folder:
        task = make_score_task(
            data,
            model=None,
            layers=model.n_layers,
            probe=probe,
            folder=folder,
            risk_of=risk_of,
            prompt_template=prompt_template,
            share=share,
            limit=limit,
            retry_failed=retry_failed,
            **options,
        )
        job = make_score_job(task, model)
        with display(progress) as shown:
            run = run_job(job, batch_size=batch_size, keep_going=keep_going, commit_seconds=commit_seconds, shown=shown)
        failures = run.failures()
        table = risk_table(run) if out is None else finish(run, out, overwrite=overwrite)
    if failures:
        warnings.warn(
            f"{counted(len(failures), 'sample')} failed: {describe_reasons(failures)}; the column failure says why.",
            stacklevel=3,
        )
    return table


@contextmanager
def run_on_the_way(out: Path | None) -> Iterator[Path]:
    """The run folder to fill: beside the table `out`, where it stays if this call ends early, or a temporary one."""
    if out is not None:
        yield unfinished_run(out)
        return
    with tempfile.TemporaryDirectory(prefix="midsight-") as folder:
        yield Path(folder) / "run"


def finish(run: Run, out: Path, *, overwrite: bool) -> pa.Table:
    """Writes the table of a finished run, removes the run, and returns the table; raises MidsightError."""
    table = risk_table(run)
    write_table(run, table, out, overwrite=overwrite)
    shutil.rmtree(str(run.path), ignore_errors=True)
    return table

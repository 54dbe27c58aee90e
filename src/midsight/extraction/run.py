"""The main job: a dataset through a model into a run folder, resumed where it was left."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from rich.filesize import decimal

from midsight.errors import MidsightError, SampleError
from midsight.extraction.apart import extract_apart, killed
from midsight.extraction.batch import Outcome, extract_samples
from midsight.extraction.budget import BatchSize, Budget, make_budget
from midsight.extraction.model import Model, load
from midsight.extraction.pipeline import behind, extract_all
from midsight.extraction.request import Plan, Request, resolve
from midsight.extraction.todo import Progress, Todo, choose, estimate_bytes
from midsight.models.loading import LoadedModel
from midsight.models.prompts import QUESTION
from midsight.records import Record
from midsight.samples.sample import Failure, ImageSource, Sample
from midsight.samples.shapes import ColumnOptions
from midsight.samples.streams import HUB_PREFIX, SampleStream, open_hub
from midsight.samples.tables import Dataset, make_samples, read_table
from midsight.store.attempts import DEADLY
from midsight.store.layout import Shard, check_shard, free_bytes
from midsight.store.reader import Run, open_run
from midsight.store.spec import RunSpec, StoreDtype, is_run
from midsight.store.writer import RunWriter, samples_done

RECORDED_PACKAGES = (
    "midsight",
    "numpy",
    "peft",
    "pillow",
    "pyarrow",
    "safetensors",
    "torch",
    "torchvision",
    "transformers",
)


def open_dataset(
    data: str | Path | Iterable[Sample | tuple[ImageSource | str, str]],
    *,
    images: str | Path | None = None,
    image_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    question: str | None = None,
    split: str | None = None,
    allow_urls: bool = False,
) -> Dataset | SampleStream:
    """A table file, Parquet shards, a saved Hugging Face dataset, one on the Hub, a folder of images, or pairs.

    images: folder that image paths start from and may not leave; the file's own by default.
    image_column: `image` by default; question_column: `question`; answer_column: `answer` or `answers`;
    id_column: `id`. question: asked about every image of a folder. split: which one, where there are several.
    allow_urls: take web addresses as images. docs/datasets.md says what goes in. Raises MidsightError.
    """
    if not isinstance(data, str | Path):
        return make_samples(data)
    folder = Path(images) if images is not None else None
    if str(data).startswith(HUB_PREFIX):
        if question is not None:
            raise MidsightError(f"{data} has questions of its own; leave --question out.")
        columns = ColumnOptions(image_column, question_column, answer_column, id_column)
        return open_hub(str(data), split=split, images=folder, allow_urls=allow_urls, columns=columns)
    return read_table(
        Path(data),
        images=folder,
        image_column=image_column,
        question_column=question_column,
        answer_column=answer_column,
        id_column=id_column,
        question=question,
        split=split,
        allow_urls=allow_urls,
    )


Data = Dataset | SampleStream | str | Path | Iterable[Sample | tuple[ImageSource | str, str]]
"""What open_dataset takes or gives."""


@dataclass(frozen=True)
class Job:
    """A call of extract, checked against its model before anything is written."""

    data: Dataset | SampleStream
    """What goes in."""
    model: LoadedModel
    """What it goes through."""
    plan: Plan
    """What is extracted."""
    spec: RunSpec
    """What the run is."""
    shard: Shard
    """Which share of the data this call does."""
    limit: int | None
    """Rows of the data, from the first."""
    retry_failed: bool
    """Whether samples that failed before are tried again."""

    def todo(self, done: Collection[str]) -> Todo:
        """What is to do beside the samples `done`."""
        return choose(self.data, done, shard=self.shard, limit=self.limit)

    def before(self, todo: Todo, out: Path) -> Progress:
        """How far the run in `out` is before `todo`; raises MidsightError where that cannot fit on its disk."""
        size = None
        if todo.remaining is not None and todo.remaining_images is not None:
            size = estimate_bytes(
                self.model, self.plan, self.spec.store_dtype, samples=todo.remaining, images=todo.remaining_images
            )
        progress = Progress(todo.samples, todo.images, todo.already, 0, 0, size, free_bytes(out))
        if size is not None and size > progress.free_bytes:
            raise MidsightError(
                f"{out} will take about {decimal(size)} more and its disk has {decimal(progress.free_bytes)} free; "
                "free some, choose another --out, fewer --layers, or --store-dtype float16."
            )
        return progress


def make_job(
    data: Data,
    *,
    model: Model | str | Path,
    images: str | Path | None = None,
    store_dtype: StoreDtype = "float32",
    limit: int | None = None,
    shard: Shard = (0, 1),
    retry_failed: bool = False,
    **options: Any,
) -> Job:
    """A call of extract with its options checked; raises MidsightError."""
    if store_dtype not in get_args(StoreDtype):
        raise MidsightError(f"--store-dtype {store_dtype!r} is unknown; give {' or '.join(get_args(StoreDtype))}.")
    if limit is not None and limit < 1:
        raise MidsightError(f"--limit is {limit}; give 1 or more.")
    check_shard(shard)
    source = data if isinstance(data, Dataset | SampleStream) else open_dataset(data, images=images)
    loaded = (model if isinstance(model, Model) else load(model)).loaded
    request = Request(**options)
    plan = resolve(request, loaded)
    spec = describe_run(source, loaded, request, plan, store_dtype)
    return Job(source, loaded, plan, spec, shard, limit, retry_failed)


def forecast(data: Data, *, model: Model | str | Path, out: str | Path, **options: Any) -> Progress:
    """How far the run `out` is before `extract` with the same arguments, of which nothing is written.

    `model` may be one that was loaded without weights. Raises MidsightError as `extract` would.
    """
    job = make_job(data, model=model, **options)
    done = samples_done(Path(out), job.spec, retry_failed=job.retry_failed)
    return job.before(job.todo(done), Path(out))


def extract(
    data: Data,
    *,
    model: Model | str | Path,
    out: str | Path,
    batch_size: BatchSize = "auto",
    commit_seconds: float = 60.0,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> Run:
    """Extracts a whole dataset into the run folder `out` and opens it.

    data: a table, a folder or pairs as for open_dataset, or what open_dataset gives, for other column
    names. model: a loaded model or its folder. batch_size: most samples in one call of the model; `auto`
    measures what memory holds. `options` are those of make_job (images, store_dtype, limit,
    shard, retry_failed) and the fields of Request. Where `out` exists the run goes on from its last commit;
    other options than its own are refused. Of the shards (0, N) to (N - 1, N) of one run, each may be another
    process's. Samples that cannot be extracted end in the run's failures.
    Raises MidsightError for a call that cannot be carried out.
    """
    job = make_job(data, model=model, **options)
    budget = make_budget(batch_size, job.model.device)
    out = Path(out)
    todo = None
    if not is_run(out):  # nothing is written where all of it cannot fit
        todo = job.todo(())
        job.before(todo, out)
    with RunWriter(
        out, job.spec, shard=job.shard, retry_failed=job.retry_failed, commit_seconds=commit_seconds
    ) as writer:
        todo = todo or job.todo(writer.done)
        fill(writer, job, todo, budget=budget, on_progress=on_progress)
    return open_run(out)


def fill(writer: RunWriter, job: Job, todo: Todo, *, budget: Budget, on_progress: Callable[[Progress], None]) -> None:
    """Extracts what is to do, storing what is done while the next samples are in the model.

    Samples during which a process died come last and one by one; those during which two did are set aside.
    """
    progress = job.before(todo, writer.path)
    on_progress(progress)
    suspects: list[Sample] = []
    set_aside: list[Sample] = []

    def count(done: Sequence[bool]) -> None:
        nonlocal progress
        progress = replace(progress, done=progress.done + sum(done), failed=progress.failed + len(done) - sum(done))
        on_progress(progress)

    def stored(outcomes: Iterable[Outcome]) -> list[bool]:
        done = {outcome.sample_id: store(writer, outcome) for outcome in outcomes}
        writer.attempts.clear(done)
        return list(done.values())

    def expected(outcomes: Iterable[Sample | Failure]) -> Iterator[Sample | Failure]:
        """What is not kept for the end."""
        for outcome in outcomes:
            deaths = 0 if isinstance(outcome, Failure) else writer.attempts.deaths(outcome.sample_id)
            if isinstance(outcome, Failure) or deaths == 0:
                yield outcome
            else:
                (suspects if deaths < DEADLY else set_aside).append(outcome)

    calls = extract_all(job.model, job.plan, expected(todo.outcomes), budget, writer.attempts.working_on)
    with closing(calls), closing(behind(stored, calls)) as results:
        for done in results:
            count(done)
    writer.commit()  # the next sample may end the process
    for sample in suspects:
        with writer.attempts.working_on([sample.sample_id]):
            outcomes = extract_samples(job.model, job.plan, [sample])
        count(stored(outcomes))
    if set_aside:
        count([store(writer, killed(sample)) for sample in set_aside])
        writer.commit()
        writer.attempts.clear([sample.sample_id for sample in set_aside])
    for sample in set_aside:
        outcome = extract_apart(job.model, job.plan, sample)
        if isinstance(outcome, Record) and store(writer, outcome):
            progress = replace(progress, done=progress.done + 1, failed=progress.failed - 1)
            on_progress(progress)


def store(writer: RunWriter, outcome: Outcome) -> bool:
    """Whether the outcome is a row of the run now; a failure, or a record that the run cannot hold, is not."""
    if isinstance(outcome, Failure):
        writer.fail(outcome)
        return False
    try:
        writer.add(outcome)
    except SampleError as error:
        writer.fail(Failure(outcome.sample_id, outcome.input_index, str(error)))
        return False
    return True


def describe_run(
    dataset: Dataset | SampleStream, model: LoadedModel, request: Request, plan: Plan, store_dtype: StoreDtype
) -> RunSpec:
    """What run.json holds: everything that decides the numbers, and where they come from."""
    asked = dataset.samples if isinstance(dataset, Dataset) else ()
    question = asked[0].question if asked else QUESTION
    user_text = plan.template.user.replace(QUESTION, question)
    example = model.adapter.render_prompt(user_text, (0, 0), 1, plan.template.system)
    options = {
        "DATA": dataset.sha256,
        **dataset.options,
        "--model": model.fingerprint,
        "--layers": sorted({tap.layer for tap in plan.taps}),
        "--positions": list(dict.fromkeys(tap.position for tap in plan.taps)),
        "--residual": request.residual,
        "--vision": request.vision,
        "--processor-pooled-pixels": request.processor_pooled_pixels,
        "--pixels": plan.pixels,
        "--prompt": plan.template.user,
        "--system": plan.template.system,
        "--answers": plan.answers,
        "--max-new-tokens": plan.max_new_tokens if plan.answers else None,
        "--dtype": str(model.dtype).removeprefix("torch."),
        "--device": model.device.type,
        "--share": plan.share,
        "--store-dtype": store_dtype,
        "--lora": model.lora,
    }
    return RunSpec(
        options=options,
        model={
            "name": model.name,
            "family": model.adapter.family,
            "architecture": model.adapter.architecture,
            "layout": model.layout,
            "revision": model.revision,
            "fingerprint": model.fingerprint,
            "lora": model.lora,
            "mends": list(model.mends),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.attention,
            "layers": model.n_layers,
            "hidden_size": model.hidden_size,
            "stop_ids": list(model.stop_ids),
            "longrope_border_tokens": model.adapter.longrope_border(model.config),
        },
        prompt={"template": plan.template.user, "system": plan.template.system, "rendered": example.text},
        dataset=describe_dataset(dataset),
        environment={
            "device": str(model.device),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: version(name) for name in RECORDED_PACKAGES},
        },
        vectors=plan.vectors,
        answers=plan.answers,
        extras=dict(dataset.extras),
        store_dtype=store_dtype,
    )


def describe_dataset(dataset: Dataset | SampleStream) -> dict[str, Any]:
    """Where the rows come from; of a stream it is not known how many there are."""
    if isinstance(dataset, SampleStream):
        return {"path": dataset.name, "rows": None, "sha256": dataset.sha256, "revision": dataset.revision}
    path = str(dataset.path) if dataset.path else None
    return {"path": path, "rows": dataset.rows, "sha256": dataset.sha256}

"""The main job: a dataset through a model into a run folder, resumed where it was left."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from midsight.errors import MidsightError, SampleError
from midsight.extraction.batch import Outcome, extract_samples
from midsight.extraction.model import DEFAULT_BATCH_SIZE, Model, check_batch_size, load
from midsight.extraction.request import Plan, Request, resolve
from midsight.models.loading import LoadedModel
from midsight.models.prompts import QUESTION
from midsight.samples.sample import Failure, ImageSource, Sample
from midsight.samples.streams import HUB_PREFIX
from midsight.samples.tables import Dataset, make_samples, read_table
from midsight.store.reader import Run, open_run
from midsight.store.spec import RunSpec
from midsight.store.writer import RunWriter

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
StoreDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    samples: int
    """Rows of the dataset that this call is about."""
    images: int
    """Distinct image references among them."""
    already: int
    """Samples that were stored or failed before this call."""
    done: int
    """Samples stored by this call."""
    failed: int
    """Samples that failed in this call."""
    estimated_bytes: int
    """Size of all vectors before compression."""

    @property
    def remaining(self) -> int:
        """Samples still to do."""
        return self.samples - self.already - self.done - self.failed


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
) -> Dataset:
    """A table file, Parquet shards, a saved Hugging Face dataset, a folder of images, or pairs, as a dataset.

    images: folder that image paths start from and may not leave; the file's own by default.
    image_column: `image` by default; question_column: `question`; answer_column: `answer` or `answers`;
    id_column: `id`. question: asked about every image of a folder. split: which one, where there are several.
    docs/datasets.md says what goes in. Raises MidsightError.
    """
    if not isinstance(data, str | Path):
        return make_samples(data)
    if str(data).startswith(HUB_PREFIX):
        raise MidsightError(
            f"{data} is a stream, which a run cannot take yet; save it with the package datasets "
            "(load_dataset(...).save_to_disk(FOLDER)) and give FOLDER."
        )
    return read_table(
        Path(data),
        images=Path(images) if images is not None else None,
        image_column=image_column,
        question_column=question_column,
        answer_column=answer_column,
        id_column=id_column,
        question=question,
        split=split,
    )


def extract(
    data: Dataset | str | Path | Iterable[Sample | tuple[ImageSource | str, str]],
    *,
    model: Model | str | Path,
    out: str | Path,
    images: str | Path | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    store_dtype: StoreDtype = "float32",
    limit: int | None = None,
    retry_failed: bool = False,
    commit_seconds: float = 60.0,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> Run:
    """Extracts a whole dataset into the run folder `out` and opens it.

    data: a table, a folder or pairs as for open_dataset, or what open_dataset gives, for other column
    names. model: a loaded model or its folder. `options` are the fields of Request. Where
    `out` exists the run goes on from its last commit; other options than its own are refused.
    Samples that cannot be extracted end in the run's failures.
    Raises MidsightError for a call that cannot be carried out.
    """
    check_batch_size(batch_size)
    if store_dtype not in get_args(StoreDtype):
        raise MidsightError(f"--store-dtype {store_dtype!r} is unknown; give {' or '.join(get_args(StoreDtype))}.")
    if limit is not None and limit < 1:
        raise MidsightError(f"--limit is {limit}; give 1 or more.")
    dataset = data if isinstance(data, Dataset) else open_dataset(data, images=images)
    if not isinstance(model, Model):
        model = load(model)
    request = Request(**options)
    plan = resolve(request, model.loaded)
    spec = describe_run(dataset, model.loaded, request, plan, store_dtype)
    with RunWriter(Path(out), spec, retry_failed=retry_failed, commit_seconds=commit_seconds) as writer:
        fill(writer, dataset, model.loaded, plan, batch_size=batch_size, limit=limit, on_progress=on_progress)
    return open_run(out)


def fill(
    writer: RunWriter,
    dataset: Dataset,
    model: LoadedModel,
    plan: Plan,
    *,
    batch_size: int,
    limit: int | None,
    on_progress: Callable[[Progress], None],
) -> None:
    """Extracts every sample the run does not have yet, the questions of an image one after the other."""
    last = dataset.rows if limit is None else limit
    chosen = [sample for sample in dataset.samples if sample.input_index < last]
    unreadable = [failure for failure in dataset.failures if failure.input_index < last]
    todo = group_by_image([sample for sample in chosen if sample.sample_id not in writer.done])
    new_failures = [failure for failure in unreadable if failure.sample_id not in writer.done]
    width = sum(plan.vectors.values())
    progress = Progress(
        samples=len(chosen) + len(unreadable),
        images=len({image_key(sample) for sample in chosen}),
        already=len(chosen) + len(unreadable) - len(todo) - len(new_failures),
        done=0,
        failed=len(new_failures),
        estimated_bytes=len(chosen) * width * 4,
    )
    for failure in new_failures:
        writer.fail(failure)
    on_progress(progress)
    for start in range(0, len(todo), batch_size):
        stored = [store(writer, outcome) for outcome in extract_samples(model, plan, todo[start : start + batch_size])]
        done = sum(stored)
        progress = replace(progress, done=progress.done + done, failed=progress.failed + len(stored) - done)
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


def group_by_image(samples: Iterable[Sample]) -> list[Sample]:
    """The samples with those of one image reference together, images in the order they first appear."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(image_key(sample), []).append(sample)
    return [sample for group in groups.values() for sample in group]


def image_key(sample: Sample) -> str:
    """What samples on the same image share before it is decoded; images in memory count as one each."""
    return sample.image or sample.sample_id


def describe_run(
    dataset: Dataset, model: LoadedModel, request: Request, plan: Plan, store_dtype: StoreDtype
) -> RunSpec:
    """What run.json holds: everything that decides the numbers, and where they come from."""
    question = dataset.samples[0].question if dataset.samples else QUESTION
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
        dataset={"path": str(dataset.path) if dataset.path else None, "rows": dataset.rows, "sha256": dataset.sha256},
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

"""`midsight extract`: a dataset into a run folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from midsight.commands.outcome import RESUMES, SOME_FAILED, STOPPED, Debug, handling_signals, reported_errors
from midsight.commands.supervisor import become_worker, may_use_gpu
from midsight.extraction.stopping import EndNow

Out = Annotated[Path, typer.Option("--out", help="The run folder; an unfinished run is resumed.")]


def extract(
    data: Annotated[
        str,
        typer.Argument(help="JSONL, JSON, CSV, TSV or Parquet file, saved dataset, folder of images, or hf:// name."),
    ],
    model: Annotated[str, typer.Option("--model", help="Folder or hub id of the model.")],
    out: Out,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that image paths start from; by default the file's.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of images; by default image.")] = None,
    question_column: Annotated[str | None, typer.Option(help="Column of questions; by default question.")] = None,
    answer_column: Annotated[
        str | None, typer.Option(help="Column of right answers; by default answer or answers.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of unique ids; by default id.")] = None,
    question: Annotated[str | None, typer.Option(help="The question about each image of a folder.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split, if the data have several.")] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Download images that are web addresses.")] = False,
    prompt: Annotated[
        str, typer.Option(help="The user's text: {question}, any {COLUMN}, \\n; or mcq for multiple choice.")
    ] = "{question}",
    system: Annotated[str | None, typer.Option(help="Text of a system turn; empty text: no system turn.")] = None,
    prompt_template: Annotated[
        str, typer.Option(metavar="auto|raw|FILE", help="The folder's own chat template, none, or that of a file.")
    ] = "auto",
    layers: Annotated[str, typer.Option(help="default, all, or decoder layers like 0,8,16.")] = "default",
    residual: Annotated[bool, typer.Option("--residual", help="Also the last layer before the final norm.")] = False,
    positions: Annotated[
        str, typer.Option(help="Any of vision_token, query_token, image_mean.")
    ] = "vision_token,query_token",
    vision: Annotated[str, typer.Option(help="mean or none: pooling of the vision encoder.")] = "mean",
    processor_pooled_pixels: Annotated[
        bool, typer.Option("--processor-pooled-pixels", help="Also the averaged pixels of earlier scripts.")
    ] = False,
    pixels: Annotated[
        str | None, typer.Option(help="pil or transformers: which resizes images; by default as published.")
    ] = None,
    answers: Annotated[bool, typer.Option(help="Whether to decode answers.")] = True,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum number of new tokens.")] = 200,
    share: Annotated[bool, typer.Option(help="Whether questions on an image share one prefix.")] = True,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="auto|N", help="Maximum number of samples in one call of the model; auto: what memory holds."
        ),
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    lora: Annotated[str, typer.Option(help="auto, merged, unmerged or off: the LoRA for images.")] = "auto",
    limit: Annotated[int | None, typer.Option(help="Process only the first N rows.")] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Which shard: 0/4 to 3/4 fill one run together.")] = "0/1",
    store_dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed samples again.")] = False,
    commit_seconds: Annotated[float, typer.Option(help="Maximum seconds between two commits.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to do; write nothing.")] = False,
    debug: Debug = False,
) -> None:
    """Extract a dataset into a run folder; the same command resumes it."""
    with reported_errors(debug=debug):
        from midsight.extraction.budget import parse_batch_size
        from midsight.extraction.display import describe_start
        from midsight.extraction.job import forecast
        from midsight.samples.open import open_dataset
        from midsight.samples.options import DatasetOptions
        from midsight.store.files import parse_shard

        most = parse_batch_size(batch_size)
        own = parse_shard(shard)
        if may_use_gpu(device) and not dry_run:
            become_worker(out, own)
        options = DatasetOptions(
            images=images,
            image_column=image_column,
            question_column=question_column,
            answer_column=answer_column,
            id_column=id_column,
            question=question,
            split=split,
            allow_urls=allow_urls,
        )
        dataset = open_dataset(data, options)
        report_renamed(dataset.extras)
        loaded = load_with_notes(model, revision=revision, dtype=dtype, device=device, lora=lora, weights=not dry_run)
        call: dict[str, Any] = {
            "model": loaded,
            "out": out,
            "layers": layers,
            "positions": positions,
            "residual": residual,
            "vision": vision,
            "processor_pooled_pixels": processor_pooled_pixels,
            "pixels": pixels,
            "prompt": with_line_breaks(prompt),
            "system": system,
            "prompt_template": prompt_template,
            "answers": answers,
            "max_new_tokens": max_new_tokens,
            "share": share,
            "store_dtype": store_dtype,
            "limit": limit,
            "shard": own,
            "retry_failed": retry_failed,
        }
        if dry_run:
            typer.echo(f"{describe_start(forecast(dataset, **call))} Nothing was written.")
            return
        report_failures(run_with_progress(dataset, batch_size=most, commit_seconds=commit_seconds, **call))


def with_line_breaks(text: str) -> str:
    r"""The text with `\n` as a line break, which is hard to type in a shell; `\\n` stays `\n`."""
    return re.sub(r"\\(\\n|n)", lambda found: "\n" if found[1] == "n" else found[1], text)


def load_with_notes(model: str, **options: Any) -> Any:
    """Loads a model and prints what the user should know about it."""
    from midsight.extraction.model import load

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with console.status(Text(f"Loading {model}")):
        loaded = load(model, **options)
    for sentence in (*loaded.loaded.notes, *loaded.loaded.fixes):
        console.print(sentence, markup=False)
    return loaded


def report_renamed(extras: Iterable[str]) -> None:
    """Says which input columns are stored under another name."""
    from midsight.reports.terminal import describe_renamed
    from midsight.store.schema import renamed_columns

    if renamed := renamed_columns(extras):
        typer.echo(f"Note: {describe_renamed(renamed)}.", err=True)


def run_with_progress(data: Any, **arguments: Any) -> Any:
    """The main job with a live display."""
    from midsight.extraction.display import progress_display
    from midsight.extraction.run import extract as extract_dataset

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with handling_signals(EndNow(STOPPED, RESUMES)), progress_display(console) as show:
        return extract_dataset(data, on_progress=show, **arguments)


def report_failures(run: Any) -> None:
    """Says how the run ended; exits with 1 if samples failed."""
    from midsight.reports.terminal import in_one_line

    failures = run.failures()
    typer.echo(f"{run.path}: {len(run)} samples stored, {len(failures)} failed.")
    if failures:
        typer.echo(f"{in_one_line(failures[0].sample_id)}: {in_one_line(failures[0].reason)}")
        typer.echo(f"See all with: midsight show {run.path} --failures")
        raise typer.Exit(SOME_FAILED)

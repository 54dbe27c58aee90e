"""The command line: one thin function for each command."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.text import Text

from midsight.errors import MidsightError, Option
from midsight.flags import as_flag
from midsight.version import __version__

if TYPE_CHECKING:
    from midsight.checkpoints.loading import Lora

DONE, SOME_FAILED, WRONG_CALL, STOPPED = 0, 1, 2, 3

app = typer.Typer(
    name="midsight",
    help="Record what a vision-language model computes on its way to an answer.",
    epilog="Exit codes: 0 all done, 1 finished with failed samples, 2 wrong call, 3 stopped early but resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option("--out", help="The run folder; an unfinished run is resumed.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

ELSEWHERE = "name a folder that is not there yet, on a disk with room"
"""The remedy if `demo` cannot write a model."""


def print_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        typer.echo(f"midsight {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def options_of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Holds the options before the command."""


@contextmanager
def reported_errors(*, debug: bool) -> Iterator[None]:
    """Turns errors into one sentence and an exit code; `debug` adds the traceback."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        errors.print("Stopped. What was finished is stored; the same command resumes from there.")
        raise typer.Exit(STOPPED) from None
    except MidsightError as error:
        if debug:
            traceback.print_exc()
        errors.print(f"Error: {error.sentence(as_flag)}", markup=False)
        raise typer.Exit(STOPPED if error.resumable else WRONG_CALL) from None


@app.command()
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
    prompt: Annotated[str, typer.Option(help="The user's text; {question} stands for the question.")] = "{question}",
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
            "prompt": prompt,
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


def load_with_notes(model: str, **options: Any) -> Any:
    """Loads a model and prints what the user should know about it."""
    from midsight.extraction.model import load

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with console.status(Text(f"Loading {model}")):
        loaded = load(model, **options)
    for sentence in (*loaded.loaded.notes, *loaded.loaded.fixes):
        console.print(sentence, markup=False)
    return loaded


def run_with_progress(data: Any, **arguments: Any) -> Any:
    """The main job with a live display."""
    from midsight.extraction.display import progress_display
    from midsight.extraction.run import extract as extract_dataset

    with progress_display(Console(stderr=True, soft_wrap=True, highlight=False)) as show:
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


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    failures: Annotated[bool, typer.Option("--failures", help="List every failed sample.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a run holds: counts, columns, shapes, norms, constant columns, failures."""
    with reported_errors(debug=debug):
        from midsight.reports.summary import summarise
        from midsight.reports.terminal import in_one_line, render_summary
        from midsight.store.reader import open_run

        opened = open_run(run)
        if failures:
            for failure in opened.failures():
                typer.echo(f"{in_one_line(failure.sample_id)}\t{in_one_line(failure.reason)}")
            return
        Console(highlight=False).print(render_summary(summarise(opened)))


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    drop_bad: Annotated[
        bool, typer.Option("--drop-bad", help="Delete bad parts; the next start does their samples again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
    debug: Debug = False,
) -> None:
    """Compare every byte of a run with its checksum, and count its samples; exits with 1 if something bad is left."""
    with reported_errors(debug=debug):
        from midsight.store import verify as verification

        report = verification.drop_bad(run) if drop_bad else verification.verify_run(run)
        if as_json:
            typer.echo(json.dumps({**asdict(report), "sound": report.sound}, indent=2))
        else:
            for finding in report.findings:
                typer.echo(f"Dropped: {finding.problem}" if finding.dropped else finding.problem)
            for note in report.notes:
                typer.echo(f"Note: {note}")
            typer.echo(
                f"{report.path}: {report.parts} parts, {report.rows} good rows, {report.failures} failed samples; "
                + ("sound." if report.sound else f"{len(report.findings)} files are bad.")
            )
            if any(finding.droppable and not finding.dropped for finding in report.findings):
                typer.echo(f"Delete the bad parts with: midsight verify {run} --drop-bad")
        if not report.sound:
            raise typer.Exit(SOME_FAILED)


@app.command()
def compact(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    target_mb: Annotated[int, typer.Option(min=1, help="How large parts may become, in MB.")] = 256,
    debug: Debug = False,
) -> None:
    """Merge the small parts of a run; killed at any moment, the run reads the same."""
    with reported_errors(debug=debug):
        from rich.filesize import decimal

        from midsight.store.compact import compact as compact_run

        done = compact_run(run, target_bytes=target_mb * 2**20)
        typer.echo(
            f"{run}: {done.commits_before} commits became {done.commits_after}, {decimal(done.bytes_before)} became "
            f"{decimal(done.bytes_after)}."
        )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format: Annotated[str, typer.Option("--format", help="hdf5, safetensors, npz, npy or csv.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; for npy a folder.")],
    columns: Annotated[
        str | None, typer.Option(help="Columns, with commas between; by default all vectors; for csv all others.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="File of sample ids, one a line or a JSON list; by default all.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out names.")] = False,
    debug: Debug = False,
) -> None:
    """Write columns of a run in another format, rows in dataset order, every number bit for bit."""
    with reported_errors(debug=debug):
        from midsight.store.exports import export_run, read_ids
        from midsight.store.reader import open_run

        opened = open_run(run)
        export_run(
            opened,
            out,
            format,
            columns=[name.strip() for name in columns.split(",") if name.strip()] if columns else None,
            samples=read_ids(samples) if samples else None,
            overwrite=overwrite,
        )
        typer.echo(f"Wrote {out}.")


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Load it and prove its numbers on this machine.")] = False,
    dtype: Annotated[str, typer.Option(help="With --run: auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="With --run: auto, cpu, mps, cuda or cuda:N.")] = "auto",
    lora: Annotated[str, typer.Option(help="With --run: auto, merged, unmerged or off.")] = "auto",
    prompt_template: Annotated[
        str, typer.Option(metavar="auto|raw|FILE", help="With --run: the folder's chat template, none, or a file's.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a model folder or hub id is, without loading its weights; with --run, prove its numbers."""
    with reported_errors(debug=debug):
        from midsight.check.facts import read_facts
        from midsight.check.proof import prove
        from midsight.check.terminal import as_plain_data, render_facts, render_proof

        given = {"dtype": dtype, "device": device, "lora": lora, "prompt_template": prompt_template}
        for name, value in given.items():
            if value != "auto" and not run:
                raise MidsightError(Option(name, value), " goes with ", Option("run"), "; add it, or leave both out.")
        facts = read_facts(model, revision=revision)
        proof = None
        if run:
            with Console(stderr=True).status("Measuring"):
                proof = prove(
                    facts.folder,
                    dtype=dtype,
                    device=device,
                    lora=cast("Lora", lora),
                    prompt_template=prompt_template,
                )
        if as_json:
            typer.echo(json.dumps(as_plain_data(facts, proof), indent=2, allow_nan=False))
        else:
            console = Console(highlight=False)
            console.print(render_facts(facts))
            console.print(render_proof(proof) if proof else "OK: every tensor is accounted for.")
        if proof and not proof.passed:
            raise typer.Exit(SOME_FAILED)


@app.command()
def models(
    model: Annotated[
        list[str] | None, typer.Argument(help="Folders or hub ids; by default the published model of every family.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
    debug: Debug = False,
) -> None:
    """Compare models side by side, from their configs alone: encoders, widths, layers, image tokens, parameters."""
    with reported_errors(debug=debug):
        from midsight.comparison.rows import compare
        from midsight.comparison.table import models_as_json, models_as_markdown, render_models

        if markdown and as_json:
            raise MidsightError(Option("markdown"), " and ", Option("json"), " are two formats; give one of them.")
        rows = compare(model or [])
        if as_json:
            typer.echo(json.dumps(models_as_json(rows), indent=2))
        elif markdown:
            typer.echo(models_as_markdown(rows))
        else:
            Console(highlight=False).print(render_models(rows))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the run and the answers.")] = Path("demo-run"),
    model_only: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write the trained demo model to DIR.")
    ] = None,
    checkpoint_only: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write a checkpoint with random weights to DIR.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the main job offline: a tiny trained model answers questions about drawn shapes."""
    with reported_errors(debug=debug):
        if checkpoint_only is not None:
            from midsight.demo.folder import write_folder
            from midsight.testing.phi4_multimodal import write_phi4_multimodal

            made = write_folder(checkpoint_only, write_phi4_multimodal, ELSEWHERE)
            typer.echo(f"Wrote an untrained Phi-4-multimodal to {made}.")
        if model_only is not None:
            from midsight.demo.folder import write_folder
            from midsight.demo.seeing import write_seeing_model

            typer.echo(f"Wrote the demo model to {write_folder(model_only, write_seeing_model, ELSEWHERE)}.")
        if checkpoint_only is not None or model_only is not None:
            return
        from midsight.demo.show import run_demo

        run_demo(out, load_with_notes, run_with_progress, Console(highlight=False))


def main() -> None:
    """Entry point of the `midsight` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(DONE)

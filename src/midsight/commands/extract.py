"""`midsight extract`: a dataset into a run folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from midsight.commands.outcome import SOME_FAILED, STOPPED, Debug, reported_errors, stopped
from midsight.commands.supervisor import become_worker, needs_supervisor
from midsight.errors import counted, spell_parts
from midsight.extraction.stopping import EndNow, handling_signals
from midsight.flags import as_flag

if TYPE_CHECKING:
    from midsight.extraction.request import Vision
    from midsight.extraction.task import BatchSize, Task
    from midsight.families.resizing import Pixels
    from midsight.store.files import Shard
    from midsight.store.reader import Run
    from midsight.store.schema import StoreDtype

DATA, WHAT, MODEL, RUNNING, STORING = "Data", "What to extract", "Model", "Running", "Storing"
"""Groups of the options in the help."""
LONGEST_PROMPT = 2_000
"""Characters of the prompt that a dry run shows."""


def extract(
    data: Annotated[
        str,
        typer.Argument(
            help="JSONL, JSON, CSV, TSV, Parquet or tar file, pattern or folder of these, saved dataset, folder of "
            "images, or hf:// name."
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", help="Folder or hub id of the model, or of an adapter.", rich_help_panel=MODEL)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="The run folder; an unfinished run is resumed.", rich_help_panel=STORING),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder that image paths start from; by default the folder of the table.", rich_help_panel=DATA
        ),
    ] = None,
    image_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of images, repeated for several, or a pattern like {image_id:012}.jpg.", rich_help_panel=DATA
        ),
    ] = None,
    question_column: Annotated[
        str | None, typer.Option(help="Column of questions; by default question.", rich_help_panel=DATA)
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option(help="Column of right answers; by default answer or answers.", rich_help_panel=DATA)
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Column of unique ids, or none; by default id, else ids are made.", rich_help_panel=DATA),
    ] = None,
    answers_from: Annotated[
        Path | None, typer.Option(help="File with the right answers, joined with --on.", rich_help_panel=DATA)
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="Column that DATA and --answers-from have in common.", rich_help_panel=DATA)
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="One question for every image of a folder, or of a table.", rich_help_panel=DATA)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which split, like test, if the data have several.", rich_help_panel=DATA)
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Download images that are web addresses.", rich_help_panel=DATA)
    ] = False,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links", help="Follow links that lead out of the folder of the images.", rich_help_panel=DATA
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Process only the first N rows.", rich_help_panel=DATA)] = None,
    prompt: Annotated[
        str,
        typer.Option(
            help="The user's text: {question}, any {COLUMN}, \\n; or mcq for multiple choice.", rich_help_panel=WHAT
        ),
    ] = "{question}",
    system: Annotated[
        str | None, typer.Option(help="Text of a system turn; empty text: no system turn.", rich_help_panel=WHAT)
    ] = None,
    prompt_template: Annotated[
        str,
        typer.Option(
            metavar="auto|raw|FILE",
            help="auto: the model folder's own chat template; raw: none; or a file with one.",
            rich_help_panel=WHAT,
        ),
    ] = "auto",
    layers: Annotated[
        str,
        typer.Option(
            help="Decoder layers: default (first, quarters, last), all, or numbers like 0,8,-1.", rich_help_panel=WHAT
        ),
    ] = "default",
    positions: Annotated[
        str,
        typer.Option(
            help="Tokens whose hidden states are stored: vision_token (the last of the image), query_token (the last "
            "of the prompt), image_mean (all of the image, averaged).",
            rich_help_panel=WHAT,
        ),
    ] = "vision_token,query_token",
    residual: Annotated[
        bool,
        typer.Option("--residual", help="Also the last layer's state before the final norm.", rich_help_panel=WHAT),
    ] = False,
    vision: Annotated[
        str,
        typer.Option(
            help="mean: the vision encoder's output, averaged over the image; none: not stored.", rich_help_panel=WHAT
        ),
    ] = "mean",
    processor_pooled_pixels: Annotated[
        bool,
        typer.Option(
            "--processor-pooled-pixels",
            help="Also the averaged pixels that earlier scripts stored as vision features.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    answers: Annotated[bool, typer.Option(help="Whether to let the model answer.", rich_help_panel=WHAT)] = True,
    max_new_tokens: Annotated[
        int, typer.Option(help="Maximum number of tokens of an answer.", rich_help_panel=WHAT)
    ] = 200,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=MODEL)
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Precision: float32, bfloat16 or float16; auto: the checkpoint's on a GPU, float32 on a CPU if that "
            "fits.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="cpu, mps, cuda or cuda:N; auto: a GPU if there is one.", rich_help_panel=MODEL)
    ] = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            metavar="auto",
            help="auto: decoder layers on several GPUs, in main memory and on disk, as far as they fit.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    lora: Annotated[
        str,
        typer.Option(
            help="How an adapter, and the model's LoRA for images, are applied: auto, merged, unmerged or off.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    base: Annotated[
        str | None,
        typer.Option(help="Base model of an adapter; by default the one that it names.", rich_help_panel=MODEL),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py",
            help="File with the family of a model that midsight does not know, proved by midsight adapter.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    pixels: Annotated[
        str | None,
        typer.Option(help="Who resizes images: pil or transformers; by default as published.", rich_help_panel=MODEL),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="Maximum number of samples in one call of the model; auto: the fastest that memory holds.",
            rich_help_panel=RUNNING,
        ),
    ] = "auto",
    plain_greedy: Annotated[
        bool,
        typer.Option(
            "--plain-greedy",
            help="Likeliest tokens, whatever the model's generation config says.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    share: Annotated[
        bool,
        typer.Option(help="Whether questions on one image share its computation.", rich_help_panel=RUNNING),
    ] = True,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="Which shard: 0/4 to 3/4 fill one run together.", rich_help_panel=RUNNING),
    ] = "0/1",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed samples again.", rich_help_panel=RUNNING)
    ] = False,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Go on even if the first 100 samples all fail.", rich_help_panel=RUNNING),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what there is to do and what is missing; write nothing.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    store_dtype: Annotated[
        str, typer.Option(help="Precision of stored vectors: float32 or float16.", rich_help_panel=STORING)
    ] = "float32",
    commit_seconds: Annotated[
        float, typer.Option(help="Maximum seconds between two commits.", rich_help_panel=STORING)
    ] = 60.0,
    debug: Debug = False,
) -> None:
    """Extract a dataset into a run folder; the same command resumes it."""
    with reported_errors(debug=debug, run=out):
        # what can be judged without the model is, before torch is imported
        from midsight.extraction.task import make_task, parse_batch_size
        from midsight.store.files import parse_shard

        most = parse_batch_size(batch_size)
        own = parse_shard(shard)
        if needs_supervisor(device) and not dry_run:
            become_worker(out, own)
        task = make_task(
            data,
            model=model,
            out=out,
            images=images,
            image_column=image_column[0] if image_column and len(image_column) == 1 else image_column or None,
            question_column=question_column,
            answer_column=answer_column,
            id_column=id_column,
            answers_from=answers_from,
            on=on,
            question=question,
            split=split,
            allow_urls=allow_urls,
            follow_links=follow_links,
            prompt=with_line_breaks(prompt),
            system=system,
            prompt_template=prompt_template,
            layers=layers,
            positions=positions,
            residual=residual,
            vision=cast("Vision", vision),
            processor_pooled_pixels=processor_pooled_pixels,
            pixels=cast("Pixels | None", pixels),
            answers=answers,
            max_new_tokens=max_new_tokens,
            plain_greedy=plain_greedy,
            share=share,
            store_dtype=cast("StoreDtype", store_dtype),
            limit=limit,
            shard=own,
            retry_failed=retry_failed,
        )
        loading = {
            "revision": revision,
            "dtype": dtype,
            "device": device,
            "lora": lora,
            "base": base,
            "device_map": device_map,
            "family": family,
        }
        if dry_run:
            say_start(task, model, loading)
            return
        run = extract_shown(task, model, loading, batch_size=most, keep_going=keep_going, commit_seconds=commit_seconds)
        report_end(run, task.shard)


def with_line_breaks(text: str) -> str:
    r"""The text with `\n` as a line break, which is hard to type in a shell; `\\n` stays `\n`."""
    return re.sub(r"\\(\\n|n)", lambda found: "\n" if found[1] == "n" else found[1], text)


def say_start(task: Task, model: str, loading: Mapping[str, Any]) -> None:
    """Says what there is to do; reads the model's headers, and writes nothing."""
    from midsight.checkpoints.loading import load_model
    from midsight.extraction.display import describe_start
    from midsight.extraction.job import look_ahead, make_job
    from midsight.extraction.trial import try_prompts
    from midsight.reports.reasons import describe_reasons
    from midsight.reports.terminal import in_one_line

    job = make_job(task, load_model(model, weights=False, **loading))
    start = look_ahead(job)
    for parts in start.notes:
        typer.echo(spell_parts(parts, as_flag))
    prompts = try_prompts(job.task.data, job.model, job.request)
    if prompts.first is not None:
        typer.echo(f"The first prompt: {in_one_line(prompts.first[:LONGEST_PROMPT])}")
    if failures := (*start.todo.unusable, *prompts.failures):
        typer.echo(f"{counted(len(failures), 'row')} cannot be extracted: {in_one_line(describe_reasons(failures))}.")
    typer.echo(f"{describe_start(start.progress)} Nothing was written.")


def extract_shown(
    task: Task,
    model: str,
    loading: Mapping[str, Any],
    *,
    batch_size: BatchSize,
    keep_going: bool,
    commit_seconds: float,
) -> Run:
    """The main job with a live display."""
    from midsight.checkpoints.loading import open_model
    from midsight.extraction.display import terminal_display
    from midsight.extraction.job import make_job
    from midsight.extraction.run import run_job

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    job = make_job(task, open_model(model, **loading))
    with handling_signals(EndNow(STOPPED, lambda: stopped(task.out))), terminal_display(console, as_flag) as shown:
        return run_job(job, batch_size=batch_size, keep_going=keep_going, commit_seconds=commit_seconds, shown=shown)


def report_end(run: Run, shard: Shard) -> None:
    """Says how the run ended; exits with 1 if samples failed."""
    from midsight.reports.reasons import commonest_reason
    from midsight.reports.terminal import in_one_line

    failures = run.failures()
    of = "" if shard[1] == 1 else f" by all {shard[1]} shards so far"
    typer.echo(f"{run.path}: {counted(len(run), 'sample')} stored, {len(failures):,} failed{of}.")
    if failures:
        example, count = commonest_reason(failures)
        alike = "" if len(failures) == 1 else f" ({count:,} like this)"
        typer.echo(f"{in_one_line(example.sample_id)}: {in_one_line(example.reason)}{alike}")
        typer.echo(f"See all with: midsight show {shlex.quote(str(run.path))} --failures")
        raise typer.Exit(SOME_FAILED)

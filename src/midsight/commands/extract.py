"""`midsight extract`: a dataset into a run folder."""

from __future__ import annotations

import re
import shlex
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from midsight.buckets.path import to_place
from midsight.commands.options import (
    MODEL,
    RUNNING,
    STORING,
    WHAT,
    AllowUrls,
    AnswerColumn,
    AnswersFrom,
    Base,
    BaseRevision,
    CallSizes,
    CommitSeconds,
    DataArgument,
    Device,
    Devices,
    Dtype,
    FamilyFile,
    FollowLinks,
    IdColumn,
    ImageColumn,
    Images,
    KeepGoing,
    Limit,
    LoraChoice,
    ModelSource,
    On,
    ProbeColumn,
    PromptTemplate,
    Question,
    QuestionColumn,
    RetryFailed,
    Revision,
    RiskOfLabel,
    Share,
    Split,
    one_or_several,
)
from midsight.commands.outcome import SOME_FAILED, STOPPED, Debug, reported_errors, stopped
from midsight.commands.supervisor import become_worker, needs_supervisor
from midsight.commands.workers import GpusPerWorker, RayAddress, Workers, extract_by_workers, find_cluster
from midsight.errors import MidsightError, Option, counted, spell_parts
from midsight.extraction.stopping import EndNow, handling_signals
from midsight.flags import as_flag

if TYPE_CHECKING:
    from midsight.checkpoints.load_options import DeviceMap, LoadKeywords, Lora
    from midsight.extraction.request import Vision
    from midsight.extraction.task import BatchSize, Task
    from midsight.families.resizing import Pixels
    from midsight.store.files import Shard
    from midsight.store.probe import Probe, RiskOf
    from midsight.store.reader import Run
    from midsight.store.schema import StoreDtype

LONGEST_PROMPT = 2_000
"""Characters of the prompt that a dry run shows."""


def extract(
    data: DataArgument,
    model: ModelSource,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            help="The run folder, or an address like s3://bucket/run; an unfinished run is resumed.",
            rich_help_panel=STORING,
        ),
    ],
    images: Images = None,
    image_column: ImageColumn = None,
    question_column: QuestionColumn = None,
    answer_column: AnswerColumn = None,
    id_column: IdColumn = None,
    answers_from: AnswersFrom = None,
    on: On = None,
    question: Question = None,
    split: Split = None,
    allow_urls: AllowUrls = False,
    follow_links: FollowLinks = False,
    limit: Limit = None,
    prompt: Annotated[
        str,
        typer.Option(
            help="The user's text: {question}, any {COLUMN}, \\n; or mcq for multiple choice.", rich_help_panel=WHAT
        ),
    ] = "{question}",
    system: Annotated[
        str | None, typer.Option(help="Text of a system turn; empty text: no system turn.", rich_help_panel=WHAT)
    ] = None,
    prompt_template: PromptTemplate = "auto",
    layers: Annotated[
        str,
        typer.Option(
            help="Decoder layers: default (first, quarters, last), all, or numbers like 0,8,-1. Stored is what a layer "
            "itself puts out, before what Qwen3-VL adds to image tokens after its first layers (deepstack).",
            rich_help_panel=WHAT,
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
    probe: Annotated[
        str | None,
        typer.Option(
            help="Folder of a probe, like RUN/findings/correct/probe: stores a risk for each sample.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    probe_column: ProbeColumn = None,
    risk_of: RiskOfLabel = "false",
    abstain_above: Annotated[
        float | None,
        typer.Option(
            metavar="RISK", help="No answer for samples with a higher risk, from 0 to 1.", rich_help_panel=WHAT
        ),
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    device_map: Devices = None,
    lora: LoraChoice = "auto",
    base: Base = None,
    base_revision: BaseRevision = None,
    family: FamilyFile = None,
    pixels: Annotated[
        str | None,
        typer.Option(help="Who resizes images: pil or transformers; by default as published.", rich_help_panel=MODEL),
    ] = None,
    batch_size: CallSizes = "auto",
    plain_greedy: Annotated[
        bool,
        typer.Option(
            "--plain-greedy",
            help="Likeliest tokens, whatever the model's generation config says.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    share: Share = True,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="Which shard: 0/4 to 3/4 fill one run together.", rich_help_panel=RUNNING),
    ] = "0/1",
    retry_failed: RetryFailed = False,
    keep_going: KeepGoing = False,
    ray: RayAddress = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
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
    commit_seconds: CommitSeconds = 60.0,
    debug: Debug = False,
) -> None:
    """Extract a dataset into a run folder; the same command resumes it."""
    with reported_errors(debug=debug, run=out):
        # what can be judged without the model is, before torch is imported
        from midsight.checkpoints.load_options import validate_loading
        from midsight.extraction.orders import Call, require_whole
        from midsight.extraction.task import make_task, parse_batch_size
        from midsight.store.files import parse_shard

        most = parse_batch_size(batch_size)
        own = parse_shard(shard)
        cluster = find_cluster(ray, workers, gpus_per_worker)
        loading: LoadKeywords = {
            "revision": revision,
            "dtype": dtype,
            "device": device,
            "lora": cast("Lora", lora),
            "base": base,
            "base_revision": base_revision,
            "device_map": cast("DeviceMap | None", device_map),
            "family": family,
        }
        validate_loading(loading)
        if needs_supervisor(device) and not dry_run and cluster is None:
            become_worker(to_place(out), own)
        ask = partial(
            make_task,
            data,
            model=model,
            out=out,
            loading=loading,
            images=images,
            image_column=one_or_several(image_column),
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
            probe=find_probe(probe, probe_column),
            risk_of=cast("RiskOf", risk_of),
            abstain_above=abstain_above,
            share=share,
            store_dtype=cast("StoreDtype", store_dtype),
            limit=limit,
            shard=own,
            retry_failed=retry_failed,
        )
        task = ask()
        if cluster is not None:
            require_whole(task)
        if dry_run:
            say_start(task, model, loading)
            return
        if cluster is None:
            run = extract_shown(
                task, model, loading, batch_size=most, keep_going=keep_going, commit_seconds=commit_seconds
            )
        else:
            call = Call(data, ask.keywords, loading, most, commit_seconds, task.data.sha256)
            run = extract_by_workers(task, call, cluster, keep_going=keep_going)
        report_end(run, task.shard)


def find_probe(folder: str | None, column: str | None) -> Probe | None:
    """The probe that the options name, None for none; raises MidsightError."""
    from midsight.store.probe import Probe

    if folder is not None:
        return Probe.load(folder, column)
    if column is not None:
        raise MidsightError(Option("probe_column"), " needs a ", Option("probe"), "; add it, or leave both out.")
    return None


def with_line_breaks(text: str) -> str:
    r"""The text with `\n` as a line break, which is hard to type in a shell; `\\n` stays `\n`."""
    return re.sub(r"\\(\\n|n)", lambda found: "\n" if found[1] == "n" else found[1], text)


def say_start(task: Task, model: str, loading: LoadKeywords) -> None:
    """Says what there is to do; reads the model's headers, and writes nothing."""
    from midsight.checkpoints.loading import load_model
    from midsight.extraction.display import describe_start
    from midsight.extraction.job import look_ahead, make_job
    from midsight.extraction.trial import try_prompts
    from midsight.reports.reasons import describe_reasons
    from midsight.reports.terminal import in_one_line

    job = make_job(task, load_model(model, weights=False, **loading))
    start = look_ahead(job)
    for parts in start.work.notes:
        typer.echo(spell_parts(parts, as_flag))
    prompts = try_prompts(job.task.data, job.model, job.request)
    if prompts.first is not None:
        typer.echo(f"The first prompt: {in_one_line(prompts.first[:LONGEST_PROMPT])}")
    if failures := (*start.work.todo.unusable, *prompts.failures):
        typer.echo(f"{counted(len(failures), 'row')} cannot be extracted: {in_one_line(describe_reasons(failures))}.")
    typer.echo(f"{describe_start(start.progress)} Nothing was written.")


def extract_shown(
    task: Task,
    model: str,
    loading: LoadKeywords,
    *,
    batch_size: BatchSize,
    keep_going: bool,
    commit_seconds: float,
    scores: bool = False,
) -> Run:
    """The main job with a live display; a finished run needs no model. `scores` stores risks alone."""
    from midsight.extraction.display import terminal_display
    from midsight.extraction.finished import open_finished, work_of_own_run

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    work = work_of_own_run(task)
    if work is not None and work.todo.is_empty:
        with terminal_display(console, as_flag) as shown:
            return open_finished(task, work, shown)
    from midsight.checkpoints.loading import open_model
    from midsight.extraction.job import make_job
    from midsight.extraction.run_job import run_job
    from midsight.extraction.score import make_score_job

    job = (make_score_job if scores else make_job)(task, open_model(model, **loading))
    with handling_signals(EndNow(STOPPED, lambda: stopped(task.out))), terminal_display(console, as_flag) as shown:
        return run_job(
            job, work, batch_size=batch_size, keep_going=keep_going, commit_seconds=commit_seconds, shown=shown
        )


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

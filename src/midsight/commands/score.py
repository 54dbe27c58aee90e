"""`midsight score`: a risk for each sample of a dataset, before the model says a word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from midsight.commands.extract import extract_shown
from midsight.commands.options import (
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
from midsight.commands.outcome import SOME_FAILED, Debug, reported_errors
from midsight.commands.supervisor import become_worker, needs_supervisor
from midsight.errors import counted

if TYPE_CHECKING:
    from midsight.checkpoints.load_options import DeviceMap, LoadKeywords, Lora
    from midsight.store.probe import RiskOf
    from midsight.store.reader import Run


def score(
    data: DataArgument,
    model: ModelSource,
    out: Annotated[
        Path,
        typer.Option("--out", help="Table to write: .jsonl, .csv or .parquet.", rich_help_panel=STORING),
    ],
    probe: Annotated[
        str,
        typer.Option("--probe", help="Folder of the probe, like RUN/findings/correct/probe.", rich_help_panel=WHAT),
    ],
    probe_column: ProbeColumn = None,
    risk_of: RiskOfLabel = "false",
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
    prompt_template: PromptTemplate = "auto",
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    device_map: Devices = None,
    lora: LoraChoice = "auto",
    base: Base = None,
    base_revision: BaseRevision = None,
    family: FamilyFile = None,
    batch_size: CallSizes = "auto",
    share: Share = True,
    retry_failed: RetryFailed = False,
    keep_going: KeepGoing = False,
    commit_seconds: CommitSeconds = 60.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what --out names.", rich_help_panel=STORING)
    ] = False,
    debug: Debug = False,
) -> None:
    """Give each sample the risk that a probe sees before the first token; prompt and images as for the probe."""
    from midsight.extraction.score_task import make_score_task, unfinished_run, validate_table

    with reported_errors(debug=debug, run=unfinished_run(out)):
        # what can be judged without the model is, before torch is imported
        from midsight.checkpoints.headers import count_layers
        from midsight.checkpoints.load_options import validate_loading
        from midsight.extraction.task import parse_batch_size
        from midsight.store.probe import Probe

        most = parse_batch_size(batch_size)
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
        validate_table(out, overwrite=overwrite)
        own = Probe.load(probe, probe_column)
        if needs_supervisor(device):
            become_worker(unfinished_run(out), (0, 1))
        task = make_score_task(
            data,
            model=model,
            layers=count_layers(Path(model)),
            probe=own,
            folder=unfinished_run(out),
            risk_of=cast("RiskOf", risk_of),
            prompt_template=prompt_template,
            share=share,
            limit=limit,
            retry_failed=retry_failed,
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
        )
        run = extract_shown(
            task, model, loading, batch_size=most, keep_going=keep_going, commit_seconds=commit_seconds, scores=True
        )
        report_risks(run, out, overwrite=overwrite)


def report_risks(run: Run, out: Path, *, overwrite: bool) -> None:
    """Writes the table and says what is in it; exits with 1 if samples failed."""
    from midsight.extraction.score import finish
    from midsight.reports.reasons import commonest_reason
    from midsight.reports.terminal import in_one_line

    failures = run.failures()
    table = finish(run, out, overwrite=overwrite)
    risks = sorted(risk for risk in table["risk"].to_pylist() if risk is not None)
    typer.echo(f"{out}: {counted(len(risks), 'sample')} scored, {len(failures):,} failed.")
    if risks:
        above = sum(risk > 0.5 for risk in risks)
        typer.echo(f"Risks from {risks[0]:.3f} to {risks[-1]:.3f}, median {risks[len(risks) // 2]:.3f}; "
                   f"{above:,} above 0.5.")  # fmt: skip
    if failures:
        example, count = commonest_reason(failures)
        alike = "" if len(failures) == 1 else f" ({count:,} like this)"
        typer.echo(f"{in_one_line(example.sample_id)}: {in_one_line(example.reason)}{alike}")
        raise typer.Exit(SOME_FAILED)

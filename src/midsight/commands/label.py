"""`midsight label`: whether each answer of a run is right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from midsight.commands.options import RunArgument
from midsight.commands.outcome import Debug, reported_errors
from midsight.errors import MidsightError, Option


def label(
    run: RunArgument,
    judge: Annotated[
        str | None, typer.Option(help="yes_no, exact, contains, f1, vqa, numeric, choice, or a variant: yes_no:pope.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the label.")] = "correct",
    from_file: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="PATH", help="Table of verdicts, in place of a judge: JSONL, JSON, CSV, Parquet."
        ),
    ] = None,
    id_column: Annotated[str, typer.Option("--id", help="With --from: column of sample ids.")] = "sample_id",
    column: Annotated[str | None, typer.Option(help="With --from: column of verdicts or scores.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest score that is right: of f1 and vqa (0.5), or in --column.")
    ] = None,
    null_words: Annotated[str, typer.Option(help="With --from: words that mean undecided, commas between.")] = "",
    tolerance: Annotated[float, typer.Option(help="numeric: largest relative error that is right.")] = 0.0,
    lenient: Annotated[bool, typer.Option("--lenient", help="yes_no: 'There is a dog.' is a yes.")] = False,
    undecided: Annotated[
        str | None, typer.Option(metavar="null|wrong", help="What becomes of answers that cannot be read.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
    debug: Debug = False,
) -> None:
    """Store for each sample whether its answer is right: by a judge, or by verdicts from a file."""
    with reported_errors(debug=debug):
        from midsight.labels.judge import JudgeOptions
        from midsight.labels.label import label_from_file, label_run, parse_undecided
        from midsight.labels.terminal import render_label
        from midsight.store.hub import require_writable
        from midsight.store.reader import open_run

        _require_heeded(
            from_file is not None,
            {"id": id_column != "sample_id", "column": column is not None, "null_words": bool(null_words)},
            {"tolerance": tolerance != 0, "lenient": lenient, "undecided": undecided is not None},
        )
        require_writable(run)
        opened = open_run(run)
        note = ""
        if from_file is not None:
            if judge is not None or column is None:
                raise MidsightError(
                    Option("from", from_file), " needs ", Option("column"), " and takes no ", Option("judge"), "."
                )
            record, note = label_from_file(
                opened, from_file, id_column=id_column, column=column, name=name, threshold=threshold,
                null_words=[word for word in null_words.split(",") if word],
            )  # fmt: skip
        elif judge is None:
            raise MidsightError("Give a ", Option("judge"), ", like yes_no, or verdicts with ", Option("from"), ".")
        else:
            options = JudgeOptions(
                parse_undecided(undecided), lenient, 0.5 if threshold is None else threshold, tolerance
            )
            record = label_run(opened, judge, name=name, options=options)
        if as_json:
            typer.echo(json.dumps(asdict(record), indent=2))
            return
        Console(highlight=False).print(render_label(record))
        if note:
            typer.echo(note)


def _require_heeded(from_file: bool, of_files: Mapping[str, bool], of_judges: Mapping[str, bool]) -> None:
    """Raises MidsightError for an option that was given and would change nothing."""
    for name, given in (of_judges if from_file else of_files).items():
        if given:
            where = "a judge, and verdicts of a file have" if from_file else "verdicts of a file, and a judge has"
            raise MidsightError(Option(name), f" is for {where} no use for it; leave it out.")

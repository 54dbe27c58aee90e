"""`midsight probe`: what a run's vectors say about a label, against the model's own confidence."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from midsight.commands.options import RunArgument
from midsight.commands.outcome import Debug, reported_errors


def names(text: str | None) -> tuple[str, ...]:
    """The names in a text with commas between."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def probe(
    run: RunArgument,
    label: Annotated[str, typer.Option(help="The label to predict, as `midsight label` made it.")] = "correct",
    name: Annotated[str | None, typer.Option(help="Name of the finding; by default the label's.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Vector columns, or positions like query_token, commas between; by default all.")
    ] = None,
    strata: Annotated[str | None, typer.Option(help="Columns within which results are also given.")] = None,
    group_by: Annotated[str, typer.Option(help="Columns whose values keep samples together.")] = "image_id",
    folds: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    holdout: Annotated[float | None, typer.Option(help="Test on this share of the groups, not by folds.")] = None,
    evaluate_on: Annotated[
        str | None, typer.Option(metavar="RUN2", help="Test on another run that has the same label.")
    ] = None,
    methods: Annotated[str, typer.Option(help="ridge; also logistic and mlp, for --columns.")] = "ridge",
    halp: Annotated[bool, typer.Option("--halp", help="Also the paper's own recipe, for --columns.")] = False,
    permutations: Annotated[int, typer.Option(help="How often labels are permuted, for p-values.")] = 199,
    seed: Annotated[int, typer.Option(help="The seed that draws folds and permutations.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
    debug: Debug = False,
) -> None:
    """Probe every vector column for a label, beside the model's confidence and other baselines."""
    with reported_errors(debug=debug):
        from midsight.probes.study import StudyOptions, study
        from midsight.probes.tables import render_finding
        from midsight.probes.write import write_study
        from midsight.store.hub import require_writable
        from midsight.store.reader import open_run
        from midsight.store.typed_json import to_json

        options = StudyOptions(
            label=label,
            name=name,
            columns=names(columns) or None,
            strata=names(strata),
            group_by=names(group_by),
            folds=folds,
            holdout=holdout,
            permutations=permutations,
            seed=seed,
            methods=names(methods),
            halp=halp,
        )
        require_writable(run)
        opened = open_run(run)
        errors = Console(stderr=True)
        bar = [TextColumn("columns"), MofNCompleteColumn(), TimeElapsedColumn()]
        with Progress(*bar, console=errors, transient=True, disable=not errors.is_terminal) as progress:
            task = progress.add_task("columns")
            done = study(
                opened,
                options,
                open_run(evaluate_on) if evaluate_on else None,
                on_progress=lambda count, total: progress.update(task, completed=count, total=total),
            )
        folder = write_study(opened, done)
        if as_json:
            typer.echo(json.dumps(to_json(done.finding), indent=2))
            return
        Console(highlight=False).print(render_finding(done.finding))
        typer.echo(f"Tables, figures and probes: {folder}")

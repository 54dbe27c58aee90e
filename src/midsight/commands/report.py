"""`midsight report`: a run as one page that works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from midsight.commands.options import RunArgument
from midsight.commands.outcome import Debug, reported_errors


def report(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="The HTML file to write; an earlier report is replaced.")],
    json: Annotated[Path | None, typer.Option(help="Also write what the page is made of to this JSON file.")] = None,
    column: Annotated[
        str | None, typer.Option(help="Vector column of the map, or a position; by default the finding's.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label; by default `correct`, or the first one.")] = None,
    findings: Annotated[str | None, typer.Option(metavar="NAME", help="The finding; by default the label's.")] = None,
    risk: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Table of risks, as `midsight score` writes it, in place of the finding's."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Folder that image paths start from; by default what the run says."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one HTML file: what was run, answers, findings, a map of the vectors, and every sample."""
    with reported_errors(debug=debug):
        from midsight.reports.page.summary.choice import ReportOptions
        from midsight.reports.page.write import write_report
        from midsight.store.reader import open_run

        options = ReportOptions(column=column, label=label, finding=findings, risk=risk, images=images)
        for note in write_report(open_run(run), out, options, json).notes:
            typer.echo(f"Note: {note}")
        typer.echo(f"Wrote {out}.")

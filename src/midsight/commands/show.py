"""`midsight show`: what a run holds."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from midsight.commands.options import RunArgument
from midsight.commands.outcome import Debug, reported_errors


def show(
    run: RunArgument,
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

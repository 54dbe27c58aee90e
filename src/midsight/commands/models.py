"""`midsight models`: models side by side."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from midsight.commands.outcome import Debug, reported_errors
from midsight.errors import MidsightError, Option


def models(
    model: Annotated[
        list[str] | None, typer.Argument(help="Folders or hub ids; by default the published model of every family.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
    debug: Debug = False,
) -> None:
    """Compare models side by side, from their configs alone: encoders, widths, layers, image tokens, parameters.

    Without names it prints a short table of the published models, one of each family.
    """
    with reported_errors(debug=debug):
        from midsight.comparison.compare import compare
        from midsight.comparison.table import models_as_json, models_as_markdown, render_models, render_overview

        if markdown and as_json:
            raise MidsightError(Option("markdown"), " and ", Option("json"), " are two formats; give one of them.")
        rows = compare(model or [])
        if as_json:
            typer.echo(json.dumps(models_as_json(rows), indent=2))
        elif markdown:
            typer.echo(models_as_markdown(rows))
        else:
            console = Console(highlight=False)
            console.print(render_models(rows, console.width) if model else render_overview(rows))

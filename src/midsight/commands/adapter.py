"""`midsight adapter`: a family file for a model that midsight does not know, proved on a small copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from midsight.commands.check import show_section
from midsight.commands.outcome import SOME_FAILED, Debug, reported_errors
from midsight.errors import MidsightError, Option


def adapter(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model; its weights are not read.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.py", help="The family file; by default named for the model's type.")
    ] = None,
    prove: Annotated[
        Path | None, typer.Option(metavar="FILE.py", help="Prove this family file, and write none.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    prompt_template: Annotated[
        str, typer.Option(metavar="auto|raw|FILE", help="The folder's chat template, none, or a file's.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
    debug: Debug = False,
) -> None:
    """Declare a model of another type: fill a family file from its config and modules, and prove it.

    The proof runs on a small copy with random weights. The file is written only if everything passes; then
    `midsight extract --family FILE.py` uses it. Otherwise it prints what is open.
    """
    with reported_errors(debug=debug):
        from midsight.declaring.declare import declare, prove_file
        from midsight.declaring.terminal import outcome_as_json, render_outcome

        if out is not None and prove is not None:
            raise MidsightError(Option("out"), " is for a new file, and ", Option("prove"), " for yours; give one.")
        with show_section(Console(stderr=True)) as on_section:
            outcome = (
                declare(model, out=out, revision=revision, prompt_template=prompt_template, on_section=on_section)
                if prove is None
                else prove_file(model, prove, revision=revision, prompt_template=prompt_template, on_section=on_section)
            )
        if as_json:
            typer.echo(json.dumps(outcome_as_json(outcome), indent=2, allow_nan=False))
        else:
            Console(highlight=False, soft_wrap=False).print(render_outcome(outcome))
        if outcome.file is None:
            raise typer.Exit(SOME_FAILED)

"""`midsight push`: a run onto the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from midsight.commands.outcome import Debug, reported_errors
from midsight.errors import counted


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.")],
    to: Annotated[str, typer.Argument(metavar="ADDRESS", help="hf://datasets/OWNER/NAME, or with @BRANCH.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    debug: Debug = False,
) -> None:
    """Upload a run with a dataset card; the same command goes on after a break, or adds what is new."""
    with reported_errors(debug=debug):
        from midsight.sharing.push import push as push_run

        console = Console(stderr=True, soft_wrap=True, highlight=False)

        def show(done: int, of: int) -> None:
            console.print(f"{done:,} of {counted(of, 'file')} on the hub")

        pushed = push_run(run, to, private=private, on_files=show)
        removed = f", {pushed.removed:,} removed" if pushed.removed else ""
        typer.echo(
            f"{pushed.address}: {counted(pushed.uploaded, 'file')} uploaded, {pushed.there:,} there before{removed}; "
            "all are equal to the run's."
        )
        typer.echo(f'In Python: midsight.open_run("{pushed.address}")')

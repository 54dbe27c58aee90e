"""`midsight compact`: the small parts of a run become few."""

from __future__ import annotations

from typing import Annotated

import typer

from midsight.commands.options import RunArgument
from midsight.commands.outcome import Debug, reported_errors
from midsight.errors import counted


def compact(
    run: RunArgument,
    target_mb: Annotated[int, typer.Option(min=1, help="How large parts may become, in MB.")] = 256,
    debug: Debug = False,
) -> None:
    """Merge the small parts of a run; killed at any moment, the run reads the same."""
    with reported_errors(debug=debug):
        from rich.filesize import decimal

        from midsight.store.compact import compact as compact_run

        done = compact_run(run, target_bytes=target_mb * 2**20)
        typer.echo(
            f"{run}: {counted(done.commits_before, 'commit')} became {done.commits_after:,}, "
            f"{decimal(done.bytes_before)} became {decimal(done.bytes_after)}."
        )

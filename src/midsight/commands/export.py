"""`midsight export`: columns of a run in another format."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer

from midsight.commands.outcome import Debug, reported_errors
from midsight.errors import MidsightError, Option


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format: Annotated[str, typer.Option("--format", help="hdf5, safetensors, npz, npy or csv.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; for npy a folder.")],
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns, with commas between; may be repeated. By default all vectors; for csv all others."),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="File of sample ids, one a line or a JSON list; by default all.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out names.")] = False,
    debug: Debug = False,
) -> None:
    """Write columns of a run in another format, rows in dataset order, every number bit for bit."""
    with reported_errors(debug=debug):
        from midsight.store.exports import export_run, read_ids
        from midsight.store.reader import open_run

        opened = open_run(run)
        export_run(
            opened,
            out,
            format,
            columns=split_columns(columns, opened.columns) if columns else None,
            samples=read_ids(samples) if samples else None,
            overwrite=overwrite,
        )
        typer.echo(f"Wrote {out}.")


def split_columns(given: Sequence[str], known: Collection[str]) -> list[str]:
    """The columns that --columns names; a text that is a column as a whole is not split at its commas.

    Raises MidsightError if it names none.
    """
    pieces = [[text] if text in known else [name.strip() for name in text.split(",")] for text in given]
    columns = [name for names in pieces for name in names if name]
    if not columns:
        raise MidsightError(Option("columns"), " names no column; leave it out, or name one, like answer.")
    return columns

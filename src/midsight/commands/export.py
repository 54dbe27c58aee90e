"""`midsight export`: columns of a run in another format."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midsight.commands.options import RunArgument
from midsight.commands.outcome import Debug, reported_errors
from midsight.errors import MidsightError, Option, counted

if TYPE_CHECKING:
    from midsight.store.reader import Run


def export(
    run: RunArgument,
    format: Annotated[str, typer.Option("--format", help="hdf5, safetensors, npz, npy, csv or halp.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; for npy and halp a folder.")],
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns, with commas between; may be repeated. By default all vectors; for csv all others."),
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="File of sample ids, one a line or a JSON list; by default all.")
    ] = None,
    vision_only: Annotated[
        str | None,
        typer.Option(
            metavar="encoder|pixels",
            help="halp: what stands under vision_only_representation: the encoder's mean (default if the run has it) "
            "or the processor's pixels, as the script for Phi-4 has it.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out names.")] = False,
    debug: Debug = False,
) -> None:
    """Write columns of a run in another format, rows in dataset order, every number bit for bit."""
    with reported_errors(debug=debug):
        from midsight.store.exports import export_run, read_ids
        from midsight.store.reader import open_run

        opened = open_run(run)
        ids = read_ids(samples) if samples else None
        if format == "halp":
            _export_halp(opened, out, columns, vision_only, ids, overwrite=overwrite)
            return
        if vision_only is not None:
            raise MidsightError(Option("vision_only"), " is for ", Option("format", "halp"), "; leave it out.")
        export_run(
            opened,
            out,
            format,
            columns=split_columns(columns, opened.columns) if columns else None,
            samples=ids,
            overwrite=overwrite,
        )
        typer.echo(f"Wrote {out}.")


def _export_halp(
    run: Run,
    out: Path,
    columns: list[str] | None,
    vision_only: str | None,
    samples: list[str] | None,
    *,
    overwrite: bool,
) -> None:
    from midsight.halp.export import export_halp

    if columns:
        raise MidsightError(Option("format", "halp"), " has fixed columns; leave out ", Option("columns"), ".")
    done = export_halp(run, out, vision_only=vision_only, samples=samples, overwrite=overwrite)
    for note in done.notes:
        typer.echo(note)
    typer.echo(f"Wrote {counted(done.samples, 'sample')} in {counted(done.parts, 'HDF5 part')} to {out}.")


def split_columns(given: Sequence[str], known: Collection[str]) -> list[str]:
    """The columns that --columns names; a text that is a column as a whole is not split at its commas.

    Raises MidsightError if it names none.
    """
    pieces = [[text] if text in known else [name.strip() for name in text.split(",")] for text in given]
    columns = [name for names in pieces for name in names if name]
    if not columns:
        raise MidsightError(Option("columns"), " names no column; leave it out, or name one, like answer.")
    return columns

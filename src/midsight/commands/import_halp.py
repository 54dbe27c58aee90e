"""`midsight import-halp`: HDF5 parts of the HALP scripts as a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from midsight.commands.outcome import SOME_FAILED, Debug, reported_errors
from midsight.errors import counted


def import_halp(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the HDF5 parts.")],
    out: Annotated[
        str,
        typer.Option("--out", help="The run folder, or an address like s3://bucket/run; an unfinished one is resumed."),
    ],
    script: Annotated[
        str | None,
        typer.Option(
            help="Which script wrote the files, if they do not say: phi4, llama, gemma, qwen, smolvlm, llava, fastvlm, "
            "molmo, or other."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make a run of HDF5 parts that HALP's scripts wrote; exits with 1 if files or samples could not be imported."""
    with reported_errors(debug=debug, run=out):
        from midsight.halp.importing import import_halp as import_parts
        from midsight.reports.terminal import in_one_line

        report = import_parts(folder, out, script=script)
        for sentence in (*report.problems, *report.notes):
            typer.echo(in_one_line(sentence))
        typer.echo(
            f"{out}: {counted(report.samples, 'sample')} of {counted(report.files, 'file')} by {report.script}, "
            f"{report.failed:,} failed."
        )
        if report.failed:
            typer.echo(f"See why with: midsight show {out} --failures")
        if report.failed or report.problems:
            raise typer.Exit(SOME_FAILED)

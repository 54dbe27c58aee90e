"""`midsight verify`: every byte of a run against its checksum."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from midsight.commands.options import RunArgument
from midsight.commands.outcome import SOME_FAILED, Debug, reported_errors
from midsight.errors import counted


def verify(
    run: RunArgument,
    drop_bad: Annotated[
        bool, typer.Option("--drop-bad", help="Delete bad parts; the next start does their samples again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain data.")] = False,
    debug: Debug = False,
) -> None:
    """Compare every byte of a run with its checksum, and count its samples; exits with 1 if something bad is left."""
    with reported_errors(debug=debug):
        from midsight.store import verify as verification

        report = verification.drop_bad(run) if drop_bad else verification.verify_run(run)
        if as_json:
            typer.echo(json.dumps({**asdict(report), "sound": report.sound}, indent=2))
        else:
            for finding in report.findings:
                typer.echo(f"Dropped: {finding.problem}" if finding.dropped else finding.problem)
            for note in report.notes:
                typer.echo(f"Note: {note}")
            typer.echo(
                f"{report.path}: {counted(report.parts, 'part')}, {counted(report.rows, 'good row')}, "
                f"{counted(report.failures, 'failed sample')}; "
                + ("sound." if report.sound else f"{counted(len(report.findings), 'bad file')}.")
            )
            if any(finding.droppable and not finding.dropped for finding in report.findings):
                typer.echo(f"Delete the bad parts with: midsight verify {run} --drop-bad")
        if not report.sound:
            raise typer.Exit(SOME_FAILED)

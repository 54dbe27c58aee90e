"""`midsight view`: a run in embedding-atlas, a browser of embeddings."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midsight.commands.options import RunArgument
from midsight.commands.outcome import Debug, reported_errors
from midsight.errors import MidsightError, counted, spell_parts
from midsight.flags import as_flag

if TYPE_CHECKING:
    from midsight.buckets.path import Place

PROGRAM = "embedding-atlas"
BY_HAND = ("uvx", f"{PROGRAM}==0.26.0")
"""How the program is called where it is not installed; the version that was tried."""


def view(
    run: RunArgument,
    column: Annotated[
        str | None,
        typer.Option(help="Vector column of the map; by default that of a probe, or the last of the query token."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Folder that image paths start from; by default as the run was extracted."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write; by default RUN.view.parquet.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of samples.")] = 100_000,
    thumbnails: Annotated[int, typer.Option(help="Maximum number of images that get a thumbnail.")] = 5_000,
    start: Annotated[bool, typer.Option(help="Whether to start embedding-atlas if it is installed.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out names.")] = False,
    debug: Debug = False,
) -> None:
    """Write a run as one Parquet file for embedding-atlas, and start it or say how."""
    with reported_errors(debug=debug):
        from midsight.reports.view import ViewOptions, write_view
        from midsight.store.reader import open_run

        opened = open_run(run)
        file = out or default_file(run, opened.path)
        options = ViewOptions(column=column, images=images, limit=limit, thumbnails=thumbnails)
        done = write_view(opened, file, options, overwrite=overwrite or out is None)
        for parts in done.notes:
            typer.echo(spell_parts(parts, as_flag))
        typer.echo(f"Wrote {counted(done.rows, 'sample')} to {file}.")
        arguments = [str(file), "--x", "pc1", "--y", "pc2", "--disable-projection", "--text", "question"]
        arguments += ["--image", "thumbnail"] if done.has_thumbnails else []
        program = shutil.which(PROGRAM) if start else None
        if program is None:
            typer.echo(f"Look at it with: {shlex.join([*BY_HAND, *arguments])}")
        else:
            typer.echo(f"Starting {shlex.join([PROGRAM, *arguments])}")
            _serve([program, *arguments])


def default_file(run: str, opened: Place) -> Path:
    """The file beside the run folder; for a run elsewhere, in the current folder by the last part of its address."""
    from midsight.store.hub import is_hub_address

    if isinstance(opened, Path) and not is_hub_address(run):
        return opened.with_name(f"{opened.name}.view.parquet")
    return Path(f"{run.rstrip('/').rpartition('/')[2]}.view.parquet")


def _serve(command: list[str]) -> None:
    """Runs the program until it ends, or Ctrl-C ends it; raises MidsightError if it fails."""
    try:
        code = subprocess.run(command, check=False).returncode  # noqa: S603  (found on the user's PATH)
    except KeyboardInterrupt:
        return
    if code:
        raise MidsightError(f"{PROGRAM} ended with exit code {code}; the file is written, and its message is above.")

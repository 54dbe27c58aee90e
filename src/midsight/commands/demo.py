"""`midsight demo`: the main job, offline, on what ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from midsight.commands.extract import extract_shown
from midsight.commands.outcome import Debug, reported_errors

if TYPE_CHECKING:
    from midsight.store.reader import Run

ELSEWHERE = "name a folder that is not there yet, on a disk with room"
"""The remedy if `demo` cannot write a model."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the run and the answers.")] = Path("demo-run"),
    model_only: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write the trained demo model to DIR.")
    ] = None,
    checkpoint_only: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only write a checkpoint with random weights to DIR.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the main job offline: a tiny trained model answers questions about drawn shapes."""
    with reported_errors(debug=debug):
        if checkpoint_only is not None:
            from midsight.demo.folder import write_folder
            from midsight.testing.phi4_multimodal import write_phi4_multimodal

            made = write_folder(checkpoint_only, write_phi4_multimodal, ELSEWHERE)
            typer.echo(f"Wrote an untrained Phi-4-multimodal to {made}.")
        if model_only is not None:
            from midsight.demo.folder import write_folder
            from midsight.demo.seeing import write_seeing_model

            typer.echo(f"Wrote the demo model to {write_folder(model_only, write_seeing_model, ELSEWHERE)}.")
        if checkpoint_only is not None or model_only is not None:
            return
        from midsight.demo.show import run_demo

        run_demo(out, extract_questions, Console(highlight=False))


def extract_questions(questions: Path, *, model: Path, images: Path, out: Path) -> Run:
    """The run of the demo's questions, with short answers."""
    from midsight.extraction.task import make_task

    task = make_task(questions, model=model, out=out, images=images, max_new_tokens=8)
    return extract_shown(task, str(model), {}, batch_size="auto", keep_going=False, commit_seconds=60.0)

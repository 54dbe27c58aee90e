"""The `midsight` command: its options of all commands, and the list of commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from midsight.commands.adapter import adapter
from midsight.commands.check import check
from midsight.commands.compact import compact
from midsight.commands.demo import demo
from midsight.commands.export import export
from midsight.commands.extract import extract
from midsight.commands.import_halp import import_halp
from midsight.commands.label import label
from midsight.commands.models import models
from midsight.commands.outcome import DONE, WRONG_CALL
from midsight.commands.probe import probe
from midsight.commands.push import push
from midsight.commands.report import report
from midsight.commands.score import score
from midsight.commands.show import show
from midsight.commands.slurm import TwoCalls, slurm
from midsight.commands.streams import forgive_streams, problem_of
from midsight.commands.verify import verify
from midsight.commands.view import view
from midsight.commands.workers import RayMayHaveAnAddress
from midsight.version import __version__

app = typer.Typer(
    name="midsight",
    help="Record what a vision-language model computes on its way to an answer.",
    epilog="Exit codes: 0 all done, 1 finished with failed samples, 2 wrong call, 3 stopped early but resumable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
EXAMPLES = {
    extract: "midsight extract questions.jsonl --images images/ --model microsoft/Phi-4-multimodal-instruct "
    "--out runs/first --limit 10",
    slurm: "midsight slurm extract questions.jsonl --images images/ --model microsoft/Phi-4-multimodal-instruct "
    "--out runs/first --shards 8 -- --partition gpu --gres=gpu:1 --time 8:00:00",
    show: "midsight show runs/first",
    label: "midsight label runs/first --judge yes_no",
    probe: "midsight probe runs/first --label correct",
    report: "midsight report runs/first --out report.html",
    score: "midsight score new.jsonl --images images/ --model microsoft/Phi-4-multimodal-instruct "
    "--probe runs/first/findings/correct/probe --out risks.csv",
    view: "midsight view runs/first",
    verify: "midsight verify runs/first",
    compact: "midsight compact runs/first",
    export: "midsight export runs/first --format hdf5 --out first.h5",
    import_halp: "midsight import-halp halp_parts --out runs/halp",
    push: "midsight push runs/first hf://datasets/me/first-run",
    check: "midsight check microsoft/Phi-4-multimodal-instruct --run",
    adapter: "midsight adapter my-models/aya-vision --out aya.py",
    models: "midsight models microsoft/Phi-4-multimodal-instruct my-models/finetuned",
    demo: "midsight demo --out demo-run",
}
"""The commands, each with an example for its help."""
SETTINGS: dict[Callable[..., None], dict[str, Any]] = {
    extract: {"cls": RayMayHaveAnAddress},
    slurm: {"cls": TwoCalls, "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}},
}
"""What the parser has to know of commands whose arguments are not all their own, or not all complete."""
for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}", **SETTINGS.get(command, {}))(command)


def print_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        typer.echo(f"midsight {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def options_of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Holds the options before the command."""


def main() -> None:
    """Entry point of the `midsight` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    output = forgive_streams()
    try:
        app()
    finally:
        if problem := problem_of(output):
            sys.stderr.write(f"Error: The output could not be written: {problem}.\n")
            sys.exit(WRONG_CALL)

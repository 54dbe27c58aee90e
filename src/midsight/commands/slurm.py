"""`midsight slurm`: an extraction as an array job."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from typer.core import TyperCommand

from midsight.buckets.path import Place, to_place
from midsight.commands.extract import extract
from midsight.commands.outcome import Debug, reported_errors
from midsight.errors import MidsightError, Option, counted

if TYPE_CHECKING:
    from midsight.cluster.slurm import Submitted

OWN_OPTIONS = ("shard", "dry_run")
"""Options of extract that this command gives itself."""


class TwoCalls(TyperCommand):
    """A command whose arguments after `--` are another program's."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Keeps what comes after `--` in the context's `obj`."""
        cut = args.index("--") if "--" in args else len(args)
        ctx.obj = args[cut + 1 :]
        return super().parse_args(ctx, args[:cut])


def slurm(
    context: typer.Context,
    _command: Annotated[
        Literal["extract"],
        typer.Argument(metavar="extract", help="And its arguments; after a -- follow options of sbatch."),
    ],
    shards: Annotated[int, typer.Option(min=1, help="Number of tasks of the array job; each does one shard.")],
    logs: Annotated[
        Path | None, typer.Option(help="Folder of the tasks' logs; by default the run's name with -slurm.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Run the tasks on this machine, all at once, as a trial.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Submit an extraction as an array job; tasks whose time is up are requeued, and resume."""
    with reported_errors(debug=debug):
        from midsight.cluster.slurm import parse_sbatch, submit_shards

        out = out_of(context.args)
        options = parse_sbatch(context.obj)
        folder = logs or (out.with_name(f"{out.name}-slurm") if isinstance(out, Path) else Path(f"{out.name}-slurm"))
        if isinstance(out, Path) and folder.absolute().is_relative_to(out.absolute()):
            raise MidsightError(Option("logs", str(folder)), f" lies in the run folder {out}, which holds nothing but "
                                "the run; give another folder.")  # fmt: skip
        say_what_there_is_to_do(context.args, shards)
        submitted = submit_shards(context.args, shards, folder, options, local=local)
        say_where_to_look(submitted, out, local=local)
        if local:
            wait_for(submitted)


def out_of(arguments: Sequence[str]) -> Place:
    """The run folder of a call of extract; raises click's error if extract would refuse the call."""
    given = extract_command().make_context("midsight slurm extract", [*arguments])
    for name in OWN_OPTIONS:
        source = given.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise MidsightError(Option(name), " cannot be given here, because midsight slurm gives it to each task.")
    return to_place(given.params["out"])


def say_what_there_is_to_do(arguments: Sequence[str], shards: int) -> None:
    """Shows the plan of the first shard, and ends with its exit code if the call is wrong.

    The machine that submits may have no GPU, so the plan is made for a CPU.
    """
    typer.echo(f"Shard 0 of {shards}:")
    plan = [*arguments, "--device", "cpu", "--shard", f"0/{shards}", "--dry-run"]
    if code := extract_command().main(plan, standalone_mode=False):
        raise typer.Exit(code)


def extract_command() -> TyperCommand:
    """`midsight extract` alone."""
    app = typer.Typer()
    app.command()(extract)
    return cast("TyperCommand", typer.main.get_command(app))


def say_where_to_look(submitted: Submitted, out: Place, *, local: bool) -> None:
    """The ids of the tasks, and the commands that show what they do."""
    ids = [job.job_id for job in submitted.jobs]
    typer.echo(f"Submitted {counted(len(ids), 'task')}: {', '.join(ids)}.")
    if not local:
        typer.echo(f"squeue --job {submitted.array}    # which are running")
        typer.echo(f"scancel {submitted.array}         # stop them; the same command resumes")
    typer.echo(f"ls {shlex.quote(str(submitted.logs))}    # logs, beside files of submitit")
    typer.echo(f"midsight show {shlex.quote(str(out))}    # what is stored, at any time")


def wait_for(submitted: Submitted) -> None:
    """Waits for tasks on this machine; raises MidsightError if any did not finish its shard."""
    failed = [job for job in submitted.jobs if job.exception() is not None]
    if failed:
        raise MidsightError(f"{counted(len(failed), 'task')} did not finish; see {failed[0].paths.stdout}.")

"""The options with which `midsight extract` works on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer.core import TyperCommand

from midsight.commands.options import RUNNING
from midsight.commands.outcome import STOPPED, stopped
from midsight.errors import MidsightError, Option
from midsight.extraction.stopping import EndNow, handling_signals
from midsight.flags import as_flag

if TYPE_CHECKING:
    from midsight.extraction.orders import Call
    from midsight.extraction.ray_cluster import Ray
    from midsight.extraction.task import Task
    from midsight.store.reader import Run

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Extract by the workers of this Ray cluster (auto or HOST:PORT); without an address, of one that is "
        "started on this machine.",
        rich_help_panel=RUNNING,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Workers on Ray; by default as many as its GPUs allow, or one per node.", rich_help_panel=RUNNING
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(help="GPUs of each worker on Ray; by default 1 if there are any.", rich_help_panel=RUNNING),
]
HERE = "here"
"""What `--ray` means without an address: a cluster that is started on this machine."""


class RayMayHaveAnAddress(TyperCommand):
    """A command in which `--ray` needs no value; only what looks like an address after it is its value."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Gives `--ray` its value if none follows."""
        if "--ray" in args:
            from midsight.extraction.ray_cluster import ADDRESS

            at = args.index("--ray")
            if not any(ADDRESS.fullmatch(word) for word in args[at + 1 : at + 2]):
                args = [*args[:at], f"--ray={HERE}", *args[at + 1 :]]
        return super().parse_args(ctx, args)


def find_cluster(address: str | None, workers: int | None, gpus_per_worker: float | None) -> Ray | None:
    """The Ray cluster that the options name, None for none; raises MidsightError."""
    from midsight.extraction.ray_cluster import Ray

    if address is not None:
        return Ray(None if address == HERE else address, workers, gpus_per_worker)
    for name, value in (("workers", workers), ("gpus_per_worker", gpus_per_worker)):
        if value is not None:
            raise MidsightError(Option(name), " needs ", Option("ray"), "; add it, or leave both out.")
    return None


def extract_by_workers(task: Task, call: Call, cluster: Ray, *, keep_going: bool) -> Run:
    """The main job by the workers of a Ray cluster, with one live display; a finished run needs none.

    `require_whole` has let the task pass.
    """
    from midsight.extraction.display import terminal_display
    from midsight.extraction.finished import open_finished, work_of_own_run

    work = work_of_own_run(task)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with handling_signals(EndNow(STOPPED, lambda: stopped(task.out))), terminal_display(console, as_flag) as shown:
        if work is not None and work.todo.is_empty:
            return open_finished(task, work, shown)
        from midsight.extraction.on_ray import extract_on_ray

        return extract_on_ray(task, call, cluster, work, keep_going=keep_going, shown=shown)

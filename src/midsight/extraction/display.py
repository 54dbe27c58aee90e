"""The progress of a run on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from midsight.extraction.todo import Progress


def describe_start(progress: Progress) -> str:
    """What a call has to do, in one sentence."""
    free = f"{decimal(progress.free_bytes)} are free."
    if progress.samples is None or progress.remaining is None or progress.estimated_bytes is None:
        return f"A stream of unknown length; the run holds {counted(progress.already, 'sample')}; {free}"
    return (
        f"{counted(progress.samples, 'sample')} on {counted(progress.images or 0, 'image')}, {progress.already:,} done "
        f"before, {progress.remaining:,} to do; about {decimal(progress.estimated_bytes)} on disk, {free}"
    )


def counted(count: int, noun: str) -> str:
    """`1 sample`, `2,000 samples`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


@contextmanager
def progress_display(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A live line: samples done and failed, samples per second, time left."""
    bars = Bars(
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples, {task.fields[failed]} failed, {task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bars:
        task = bars.add_task("extracting", total=None, failed=0, speed="", start=False)

        def show(progress: Progress) -> None:
            finished = progress.already + progress.done + progress.failed
            if not bars.tasks[task].started:
                console.print(describe_start(progress))
                bars.reset(task, total=progress.samples, completed=finished, failed=progress.failed, speed="")
            speed = bars.tasks[task].speed
            bars.update(
                task,
                completed=finished,
                failed=progress.failed,
                speed=f"{speed:.1f} per second" if speed else "",
            )

        yield show

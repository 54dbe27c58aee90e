"""What a run shows while it works: sentences at the start, then its progress, in a terminal, a notebook or a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from midsight.errors import Option, counted, spell_parts
from midsight.extraction.todo import Progress
from midsight.samples.images import MOST_NOTES

if TYPE_CHECKING:
    from midsight.checkpoints.loading import LoadedModel
    from midsight.extraction.job import Job

LOG_SECONDS = 30.0
"""Time between two lines of progress in a log."""

ShowProgress = Callable[[Progress], None]
"""Called with the progress at the start and after every call of the model."""
Parts = Sequence[str | Option]
"""A sentence in which options are spelled as the caller does."""


class Display(Protocol):
    """What a run tells its user."""

    def start(self, progress: Progress, notes: Sequence[Parts]) -> None:
        """Says what there is to do, and what a user should know about the data."""

    def loading(self, model: LoadedModel, load: Callable[[], Job]) -> Job:
        """Calls `load`, which makes a job with its model in memory, and says what a user should know about it."""
        ...

    def progress(self, progress: Progress, /) -> None:
        """Shows the progress."""

    def note(self, sentence: str) -> None:
        """Says what a user should know about an image."""

    def end(self, notes: Sequence[str]) -> None:
        """Says what a user should know about the data after they were read."""

    def say(self, sentence: str) -> None:
        """Says a sentence about the model or the run."""


class Silent:
    """A display that says nothing; it passes the progress on to a function."""

    def __init__(self, on_progress: ShowProgress = lambda _: None) -> None:
        self.progress = on_progress

    def start(self, progress: Progress, notes: Sequence[Parts]) -> None:
        """Says nothing."""

    def note(self, sentence: str) -> None:
        """Says nothing."""

    def end(self, notes: Sequence[str]) -> None:
        """Says nothing."""

    def say(self, sentence: str) -> None:
        """Says nothing."""

    def loading(self, model: LoadedModel, load: Callable[[], Job]) -> Job:  # noqa: ARG002  (nothing is said of it)
        """Calls `load`."""
        return load()


class Spoken:
    """A display that says sentences, and shows the progress as `on_progress` does."""

    def __init__(self, say: Callable[[str], None], on_progress: ShowProgress, spell: Callable[[Option], str]) -> None:
        self._say = say
        self._spell = spell
        self._noted = set[str]()
        self._noting = Lock()
        self.progress = on_progress

    def start(self, progress: Progress, notes: Sequence[Parts]) -> None:
        """Says what there is to do, and what a user should know about the data."""
        for parts in (*notes, [describe_start(progress)]):
            self._say(spell_parts(parts, self._spell))

    def note(self, sentence: str) -> None:
        """Says the first notes about images, because many images may be alike; several threads call it."""
        with self._noting:
            if sentence not in self._noted and len(self._noted) < MOST_NOTES:
                self._say(f"Note: {sentence}")
            self._noted.add(sentence)

    def end(self, notes: Sequence[str]) -> None:
        """Says how many notes about images there were beyond the first, and what else is known after the data."""
        more = len(self._noted) - MOST_NOTES
        if more > 0:
            self._say(f"Note: {counted(more, 'more image comes', 'more images come')} out nearly black.")
        for sentence in notes:
            self._say(f"Note: {sentence}")

    def say(self, sentence: str) -> None:
        """Says a sentence about the model or the run."""
        self._say(sentence)

    def loading(self, model: LoadedModel, load: Callable[[], Job]) -> Job:
        """Says which model is loaded, and what was found at load."""
        self._say(f"Loading {model.name}.")
        job = load()
        for sentence in (*job.model.notes, *job.model.fixes):
            self._say(sentence)
        return job


def describe_start(progress: Progress) -> str:
    """What a call has to do, in one sentence."""
    free = None if progress.free_bytes is None else f"{decimal(progress.free_bytes)} are free."
    if progress.samples is None or progress.remaining is None or progress.estimated_bytes is None:
        held = f"A stream of unknown length; the run holds {counted(progress.already, 'sample')}"
        return f"{held}{'.' if free is None else f'; {free}'} Its images are looked for as its rows arrive."
    failed = f" ({progress.already_failed:,} of them failed)" if progress.already_failed else ""
    where = "in the bucket." if free is None else f"on disk, {free}"
    todo = f"{progress.remaining:,} to do; about {decimal(progress.estimated_bytes)} {where}"
    return (
        f"{counted(progress.samples, 'sample')} on {counted(progress.images or 0, 'image')}, {progress.already:,} done "
        f"before{failed}, {todo if progress.remaining else 'nothing to do.'}"
    )


@contextmanager
def display(progress: ShowProgress | Literal["bar"] | None) -> Iterator[Display]:
    """The display that the argument `progress` of `midsight.extract` asks for."""
    if progress is None:
        yield Silent()
    elif progress == "bar":
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        with notebook_display() if console.is_jupyter else terminal_display(console) as shown:
            yield shown
    else:
        yield Silent(progress)


@contextmanager
def terminal_display(console: Console, spell: Callable[[Option], str] = str) -> Iterator[Display]:
    """A live line if the console is a terminal, else lines of a log."""

    def say(sentence: str) -> None:
        console.print(sentence, markup=False)

    if not console.is_terminal:
        yield Spoken(say, Lines(say), spell)
        return
    with live_line(console) as on_progress:
        yield Spoken(say, on_progress, spell)


@contextmanager
def live_line(console: Console) -> Iterator[ShowProgress]:
    """A bar with samples done and failed, samples per second and time left; it appears with the first progress."""
    bars = Bars(
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[samples]}, {task.fields[failed]} failed, {task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
    )
    task = bars.add_task("extracting", total=None, samples="samples", failed=0, speed="", start=False)

    def show(progress: Progress) -> None:
        finished = progress.already + progress.done + progress.failed
        if not bars.tasks[task].started:
            bars.start()
            noun = "sample" if progress.samples == 1 else "samples"
            bars.reset(task, total=progress.samples, completed=finished, samples=noun)
        speed = bars.tasks[task].speed
        bars.update(
            task,
            completed=finished,
            failed=progress.all_failed,
            speed=f"{speed:.1f} per second" if speed else "",
        )

    try:
        yield show
    finally:
        bars.stop()


@contextmanager
def notebook_display() -> Iterator[Display]:
    """Sentences as the cell's output, and one line that is replaced; needs no widgets."""
    show = import_module("IPython.display").display  # a notebook has it
    handle: Any = show({"text/plain": ""}, raw=True, display_id=True)

    def update(line: str) -> None:
        handle.update({"text/plain": line}, raw=True)

    yield Spoken(lambda sentence: print(sentence, file=sys.stderr), Lines(update, every_s=0.5), str)


class Lines:
    """Shows the progress as lines of text: at the start, at the end, and in between at most every few seconds."""

    def __init__(self, write: Callable[[str], None], every_s: float = LOG_SECONDS) -> None:
        self._write = write
        self._every_s = every_s
        self._started: float | None = None
        self._written = 0.0

    def __call__(self, progress: Progress) -> None:
        """Writes a line if it is time."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
        elif progress.remaining == 0 or now - self._written >= self._every_s:
            self._written = now
            self._write(describe_progress(progress, now - self._started))


def describe_progress(progress: Progress, seconds: float) -> str:
    """How far a call is after some seconds, in one line."""
    finished = progress.already + progress.done + progress.failed
    samples = counted(finished if progress.samples is None else progress.samples, "sample")
    of = "" if progress.samples is None else f"{finished:,} of "
    line = f"{of}{samples}, {progress.all_failed:,} failed"
    worked = progress.done + progress.failed
    if not worked or not seconds:
        return line
    line += f", {worked / seconds:.1f} per second"
    if not progress.remaining:
        return line
    return f"{line}, {timedelta(seconds=round(progress.remaining * seconds / worked))} left"

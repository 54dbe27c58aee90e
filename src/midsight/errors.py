"""The errors that midsight raises on purpose: one sentence that names the argument, its value and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Option:
    """An argument of the call, inside an error's sentence: a Python name here, a flag on the command line."""

    name: str
    """The argument's Python name, as in `max_new_tokens`."""
    value: Any = None
    """The value that the sentence suggests or quotes; None if it names the argument alone."""

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value!r}"


def spell_parts(parts: Iterable[Any], spell: Callable[[Option], str]) -> str:
    """The text of a sentence's parts, each Option written by `spell`."""
    return "".join(spell(part) if isinstance(part, Option) else str(part) for part in parts)


class MidsightError(Exception):
    """A call that cannot be carried out; the command exits with 2.

    Its arguments are the parts of one sentence: text, and an Option for each argument of the call that it names.
    """

    resumable = False
    """Whether the same call can resume later from what is stored; the command then exits with 3."""

    def __str__(self) -> str:
        return self.sentence(str)

    def sentence(self, spell: Callable[[Option], str]) -> str:
        """The sentence.

        Args:
            spell: Writes an argument of the call, as Python or as the command line spells it.

        Returns:
            One sentence, or a few.
        """
        return spell_parts(self.args, spell)


class SampleError(MidsightError):
    """One sample that cannot be extracted; a run records it as failed and continues."""


class ModelFileError(MidsightError):
    """A file of a model folder that is missing, damaged, or does not fit the others; downloading it anew may help."""

    def __init__(self, problem: str, path: Path | None = None, *, command: str = "") -> None:
        """`problem` is the sentence without its remedy.

        `path` is the file at fault, None for the whole folder; `command` is the command that downloads it.
        """
        again = f"download {path.name if path else 'the folder'} again" + (f" with `{command}`" if command else "")
        super().__init__(f"{problem}; {again}.")
        self.problem = problem
        self.path = path


class RunError(MidsightError):
    """A run folder that cannot be read or written."""


class LockedError(RunError):
    """A shard, or the start of a writer, that another process holds at this moment."""


class DamagedRunError(RunError):
    """Stored data that differs from what was written; the message names the part."""


class OtherRunError(DamagedRunError):
    """A commit record and a run.json that are of different runs."""

    def __init__(self, message: str, run_id: str) -> None:
        """`run_id` is the record's."""
        super().__init__(message)
        self.run_id = run_id


class RenamedError(DamagedRunError):
    """A commit record that is whole and has another name than it was written with."""

    def __init__(self, message: str, name: str) -> None:
        """`name` is the name that it was written with, without its suffix."""
        super().__init__(message)
        self.name = name


class BrokenOffError(MidsightError):
    """Work that ended early for a reason outside the samples: a stream's network, a lost device."""

    resumable = True


class AllFailedError(MidsightError):
    """The first samples of a run all failed, so it stopped: something is wrong with all of them."""

    resumable = True


class RepeatedIdError(MidsightError):
    """An id that a dataset repeats; of a stream, the rows before it are good."""

    @property
    def problem(self) -> str:
        """The sentence without its remedy."""
        return str(self.args[0])


class CommitError(RunError):
    """A commit that could not be written, on a full disk for example; all commits before it are intact."""

    resumable = True


class UnreachableError(CommitError):
    """An object store that cannot be reached, or refuses; everything committed is intact."""


class RefusedError(UnreachableError):
    """An object that the store denies access to, with credentials that are otherwise good."""


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says, cut where it is long; the error's type if it says nothing.

    With the next line if it announces one, as transformers' `Validation error for field 'name':` does.
    """
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":") and rest.strip():
        first = f"{first} {rest.strip().splitlines()[0]}"
    return quoted(first.rstrip(".") or type(error).__name__)


def quoted(text: str, longest: int | None = None) -> str:
    """A text of unknown origin for a sentence: control characters as escapes, and cut after `longest` characters."""
    most = LONGEST_QUOTE if longest is None else longest
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: most + 1])
    return line if len(line) <= most else f"{line[:most].rstrip()} …"


def is_failure(error: BaseException) -> bool:
    """Whether work failed, rather than that somebody wants it to end: an Exception, or a panic of a library in Rust."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 sample`, `2,000 samples`; `many` is the plural if it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


LONGEST_QUOTE = 240
"""Characters of a library's error that a sentence quotes."""
LOAD_OPTIONS = frozenset(
    ("revision", "dtype", "device", "device_map", "lora", "base", "base_revision", "family", "audio", "weights")
)
"""The arguments of `midsight.load`."""


def unknown_option(name: str, known: Iterable[str]) -> MidsightError:
    """The error for an argument that a call does not have, with the nearest one that it has."""
    if name in LOAD_OPTIONS:
        return MidsightError(f"{name} is an option of midsight.load; load the model with it.")
    known = sorted(known)
    nearest = get_close_matches(name, known, n=1)
    if nearest:
        return MidsightError(f"There is no option {name!r}; did you mean ", Option(nearest[0]), "?")
    return MidsightError(f"There is no option {name!r}; the options are {', '.join(known)}.")

"""The user's text of a prompt: the option `prompt`, filled from the columns of a sample."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midsight.errors import MidsightError, Option, SampleError
from midsight.prompts.declaration import QUESTION
from midsight.samples.choices import choices_of, is_choice_column, is_missing_choice, require_choices
from midsight.samples.columns import ColumnSource
from midsight.samples.extras import ExtraType
from midsight.samples.rows import quoted_names
from midsight.samples.sample import Sample

MULTIPLE_CHOICE = "mcq"
"""The value of the option `prompt` that renders hint, question and choices as VLMEvalKit does."""

CONTEXT_COLUMNS = ("hint", "context", "input", "inputs", "instruction", "passage", "history")
"""Columns that some datasets have beside the question and show to the model with it."""
SYSTEM_COLUMNS = ("system", "system_prompt")
"""Columns of system turns."""

_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<text>[^{}]+)|(?P<lone>[{}])")


@dataclass(frozen=True)
class Column:
    """A place in the user's text that a column fills."""

    name: str
    """The column's name."""
    source: ColumnSource
    """Which part of a sample has its value."""
    optional: bool = False
    """Whether the line is left out of a prompt where the sample has no value."""

    def text(self, sample: Sample) -> str | None:
        """The sample's value as text; None if it has none. Raises SampleError for a list or an object."""
        match self.source:
            case "question":
                return sample.question
            case "image":
                return sample.image or None
            case "id":
                return sample.sample_id
            case "answer":
                answers = sample.reference_answers
                return as_text(answers[0] if len(answers) == 1 else list(answers) or None, self.name)
        return as_text(sample.extras.get(self.name), self.name)


Piece = str | Column
"""A part of a line of the option `prompt`."""


@dataclass(frozen=True)
class FilledText:
    """The user's text for one sample."""

    text: str
    """With image placeholders, as the dataset has them."""
    question: tuple[int, int]
    """Start and stop of the sample's question in it, in characters."""


@dataclass(frozen=True)
class UserText:
    """The option `prompt`, parsed."""

    spelled: str = QUESTION
    """As the user gave it."""
    lines: tuple[tuple[Piece, ...], ...] = ((Column("question", "question"),),)
    """Text and columns of each line; empty for multiple choice."""

    def fill(self, sample: Sample) -> FilledText:
        """The text for one sample; raises SampleError if a column that it needs has no value, or a list."""
        before, after = self._around_question(sample)
        return FilledText(before + sample.question + after, (len(before), len(before) + len(sample.question)))

    def _around_question(self, sample: Sample) -> tuple[str, str]:
        """What stands before and after the sample's question."""
        if self.spelled == MULTIPLE_CHOICE:
            return around_multiple_choice(sample)
        sides: list[list[str]] = [[]]
        for line in self.lines:
            if is_left_out(line, sample):
                continue
            if sides != [[]]:
                sides[-1].append("\n")
            for piece in line:
                if isinstance(piece, Column) and piece.source == "question":
                    sides.append([])
                else:
                    sides[-1].append(piece if isinstance(piece, str) else required_text(piece, sample))
        before, after = map("".join, sides)
        return before, after


QUESTION_ALONE = UserText()
"""The sample's question and nothing else."""


def parse_user_text(spelled: str, columns: Mapping[str, ColumnSource]) -> UserText:
    """The option `prompt`; raises MidsightError if it cannot be used.

    `{NAME}` is a column, `{NAME?}` a column whose line is left out where it has no value, `{question}` the sample's
    question, whatever its column is called; `{{` and `}}` are braces.
    """
    if spelled == MULTIPLE_CHOICE:
        if not any(map(is_choice_column, columns)):
            raise MidsightError(
                Option("prompt", spelled),
                f" needs choices in columns A, B, ... or in a list named choices or options, and {_shown(columns)}.",
            )
        return UserText(spelled, ())
    pieces = list(_pieces(spelled, {**columns, "question": "question"}))
    asked = [piece for piece in pieces if isinstance(piece, Column) and piece.source == "question"]
    if len(asked) != 1 or asked[0].optional:
        raise MidsightError(Option("prompt"), f" is {spelled!r}; it has to contain {QUESTION} exactly once.")
    return UserText(spelled, tuple(map(tuple, _lines(pieces))))


def describe_unused_columns(spelled: str, extras: Mapping[str, ExtraType]) -> tuple[str, ...]:
    """Notes on choices and other parts of a question that the data have and the option `prompt` leaves out."""
    notes: list[str] = []
    is_mcq = spelled == MULTIPLE_CHOICE
    left_out = [name for name in extras if f"{{{name}}}" not in spelled and f"{{{name}?}}" not in spelled]
    choices = [name for name in extras if is_choice_column(name)]
    if choices and not is_mcq and {*choices} <= {*left_out}:
        notes.append(
            f"{quoted_names(choices)} look like choices, which are not part of the prompt; the prompt mcq has them."
        )
    in_prompt = {"hint"} if is_mcq else set[str]()
    if context := [name for name in left_out if name.casefold() in {*CONTEXT_COLUMNS} - in_prompt]:
        text = next((name for name in context if extras[name] == "string" and not is_mcq), None)
        remedy = f"; the prompt may have {{{text}?}}" if text else ""
        notes.append(f"{quoted_names(context)} may belong to the question, and the prompt leaves it out{remedy}.")
    if system := [name for name in left_out if name.casefold() in SYSTEM_COLUMNS]:
        notes.append(
            f"{quoted_names(system)} may hold system turns, which are left out; the option system gives all prompts "
            "the same one."
        )
    return tuple(notes)


def _pieces(spelled: str, columns: Mapping[str, ColumnSource]) -> Iterator[Piece]:
    for found in _PIECE.finditer(spelled):
        if found["lone"]:
            brace = found["lone"]
            raise MidsightError(Option("prompt"), f" is {spelled!r}; write {brace * 2} for a {brace} that is text.")
        if found["name"] is None:
            yield found["text"] or found["brace"][0]
            continue
        optional = found["name"].endswith("?") and found["name"] not in columns
        name = found["name"].removesuffix("?") if optional else found["name"]
        if name not in columns:
            raise MidsightError(
                Option("prompt"),
                f" contains {found.group()}, and {_shown(columns)}; write {{{{ and }}}} for braces that are text.",
            )
        yield Column(name, columns[name], optional)


def _shown(columns: Mapping[str, ColumnSource]) -> str:
    return f"the data have {quoted_names(columns)}" if columns else "the data have no columns"


def _lines(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    line: list[Piece] = []
    for piece in pieces:
        first, *following = piece.split("\n") if isinstance(piece, str) else [piece]
        line.append(first)
        for text in following:
            yield line
            line = [text]
    yield line


def around_multiple_choice(sample: Sample) -> tuple[str, str]:
    """What stands before and after the question in VLMEvalKit's prompt for multiple choice."""
    require_choices(sample.extras)
    hint = next((as_text(cell, name) for name, cell in sample.extras.items() if name.casefold() == "hint"), None)
    before = ("" if hint is None else f"Hint: {hint}\n") + "Question: "
    choices = "".join(f"{letter}. {as_text(choice, letter)}\n" for letter, choice in choices_of(sample.extras))
    ending = "Please select the correct answer from the options above. \n"
    return before, f"\nOptions:\n{choices}{ending}" if choices else "\n"


def is_left_out(line: Sequence[Piece], sample: Sample) -> bool:
    """Whether an optional column of a line has no value; raises SampleError if that is the line of the question."""
    columns = [piece for piece in line if isinstance(piece, Column)]
    missing = next((one.name for one in columns if one.optional and one.text(sample) is None), None)
    if missing is not None and any(one.source == "question" for one in columns):
        raise SampleError(
            f"The prompt uses the column {missing!r}, which has no value in this sample, on the line of {QUESTION}, "
            f"which is never left out; put {{{missing}?}} on a line of its own."
        )
    return missing is not None


def required_text(column: Column, sample: Sample) -> str:
    """The sample's value of a column; raises SampleError if it has none."""
    value = column.text(sample)
    if value is None:
        raise SampleError(
            f"The prompt uses the column {column.name!r}, which has no value in this sample; write {{{column.name}?}} "
            "to leave the line out where it has none."
        )
    return value


def as_text(value: Any, column: str) -> str | None:
    """A cell as text of a prompt; None for null, NaN, blank text, and the text `nan`, as pandas writes NaN.

    A whole number that became a float, as pandas makes it in a column with nulls, is written without `.0`. Raises
    SampleError for a list or an object.
    """
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        raise SampleError(f"The prompt uses the column {column!r}, which is {kind} in this sample; give one with text.")
    if is_missing_choice(value):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

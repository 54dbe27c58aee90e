"""Which column has which role: as the user says, as a known benchmark has it, or by its name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from midsight.errors import MidsightError, Option
from midsight.samples.conversations import CONVERSATION_COLUMNS, conversation_column
from midsight.samples.image_cells import NAME_IN_PATTERN
from midsight.samples.options import DatasetOptions
from midsight.samples.rows import Table, quoted_names

Benchmark = Literal["pope", "conversation", "vlmevalkit", "halp"]
"""Known by their columns. pope: question_id, image, text, label. conversation: conversations, messages and their like.
vlmevalkit: a TSV with index, question, and image or image_path. halp: a CSV with question_id, question, one of
HALP_IMAGES and one of HALP_ANSWERS, and no other column of images."""

HALP_IMAGES = ("image_name", "image_id")
HALP_ANSWERS = ("answer", "gt_answer", "ground_truth_answer")
"""Columns of the CSV that the HALP scripts take, the first that a table has."""

NO_COLUMN = "none"
"""The value of `id_column` for a table whose rows get ids of their own."""

IMAGE_NAMES = (
    "image", "images", "image_path", "image_file", "image_name", "image_file_name", "file_name", "filename", "img",
    "img_path", "img_name", "image_url",
)  # fmt: skip
QUESTION_NAMES = ("question", "query", "prompt", "instruction")
ANSWER_NAMES = (
    "answer", "answers", "gt_answer", "ground_truth", "groundtruth_responses", "multiple_choice_answer",
    "direct_answers",
)  # fmt: skip
"""Names by which a column is recognised, the first that a table has; compared without case, spaces, `_` and `-`."""

_NUMBERED_IMAGE = re.compile(r"image_?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Roles:
    """The column of each role."""

    benchmark: Benchmark | None
    """The benchmark that was recognised."""
    images: tuple[str, ...]
    """Columns of the images, in order."""
    question: str
    """Column of the questions, or of the conversations that hold them."""
    answer: str | None
    """Column of the reference answers."""
    id: str | None
    """Column of the sample ids."""
    image_pattern: str | None = None
    """Makes the path of an image of other columns, like `{image_id:012}.jpg`; `images` are then those columns."""
    id_is_guessed: bool = False
    """Whether nobody named the column of ids, so that ids which repeat are no ids."""
    id_is_extra: bool = False
    """Whether the column of ids is kept as an extra too, because its ids may turn out to repeat."""
    notes: tuple[str, ...] = ()
    """What was decided by names that are not exactly the expected ones."""

    @property
    def not_extras(self) -> set[str | None]:
        """The columns that are not kept as extras: a conversation is kept, unless it holds the images."""
        images = {} if self.image_pattern else {*self.images}
        kept = {self.question} - {*images} if self.benchmark == "conversation" else set[str]()
        return {*images, self.question, self.answer, None if self.id_is_extra else self.id} - kept

    def as_options(self) -> dict[str, str | None]:
        """Field of DatasetOptions -> column name; several image columns are a JSON list."""
        several = json.dumps(self.images, ensure_ascii=False)
        return {
            "image_column": self.image_pattern or (self.images[0] if len(self.images) == 1 else several),
            "question_column": self.question,
            "answer_column": self.answer,
            "id_column": self.id,
        }


@dataclass
class _Columns:
    """The columns of a table by name, and what has to be said about them."""

    table: Table
    notes: list[str] = field(default_factory=list)

    def find(self, names: Iterable[str], role: str) -> str | None:
        """The first of the names that the table has, exactly or but for case, spaces, `_` and `-`."""
        names = tuple(names)
        for name in names:
            alike = [column for column in self.table.columns if _normal(column) == _normal(name)]
            found = [name] if name in alike else alike
            if len(found) == 1:
                if found[0] not in (names[0], "answers", "images"):
                    self.notes.append(f"The column {found[0]!r} is taken as the {role}.")
                return found[0]
        return None

    def named(self, name: str, role: str) -> str:
        """The column that the user or a benchmark names; raises MidsightError if it is missing or holds bytes."""
        found = self.find([name], role)
        option = Option(f"{role}_column")
        if found is None:
            has = quoted_names(self.table.columns)
            problem = f"{self.table.path} has no column {name!r}; it has {has}: choose one with "
            raise MidsightError(problem, option, *self.table.other_rows, ".")
        if role != "image" and found in self.table.binary_columns:
            raise MidsightError(f"{self.table.path} holds bytes in column {found!r}; choose another with ", option, ".")
        return found


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def assign_roles(table: Table, options: DatasetOptions) -> Roles:
    """The role of each column; columns that the user names win over those of a benchmark, and these over guesses.

    Raises MidsightError for a column that is missing or holds bytes where text is needed.
    """
    columns = _Columns(table)
    benchmark = _recognise(table, options)
    question = _question(columns, benchmark, options) or QUESTION_NAMES[0]
    images, pattern = _images(columns, benchmark, options, question)
    question = columns.named(question, "question")
    sample_id, guessed = _id(columns, benchmark, options)
    known = {"pope": ("label",), "halp": HALP_ANSWERS}.get(benchmark or "", ())
    answer = options.answer_column or next((name for name in known if name in table.columns), None)
    if answer is not None:
        answer = columns.named(answer, "answer")
    else:
        taken = {*images, question, sample_id} | table.binary_columns
        free = _Columns(table)
        answer = free.find(ANSWER_NAMES, "answer")
        answer = None if answer in taken else answer
        columns.notes += free.notes if answer is not None else []
    if sample_id is not None and guessed and sample_id in {answer, question, *images}:
        sample_id = None
    return Roles(benchmark, images, question, answer, sample_id, pattern, guessed, notes=tuple(columns.notes))


def find_column(table: Table, name: str) -> str | None:
    """The column with this name, or with one that differs in case, spaces, `_` and `-` only; None if there is none."""
    return _Columns(table).find([name], "")


def find_questions(table: Table, options: DatasetOptions) -> str | None:
    """The column of the questions or conversations; None if no name tells."""
    return _question(_Columns(table), _recognise(table, options), options)


def _recognise(table: Table, options: DatasetOptions) -> Benchmark | None:
    columns = set(table.columns)
    has_question = options.question_column is not None or "question" in columns
    if not has_question and {"question_id", "image", "text"} <= columns:
        return "pope"
    if options.question_column in CONVERSATION_COLUMNS or (not has_question and conversation_column(columns)):
        return "conversation"
    if table.kind == "tsv" and {"index", "question"} <= columns and columns & {"image", "image_path"}:
        return "vlmevalkit"
    other_images = {*map(_normal, columns)} & {_normal(name) for name in IMAGE_NAMES if name not in HALP_IMAGES}
    is_halp = table.kind == "csv" and {"question_id", "question"} <= columns and not other_images
    return "halp" if is_halp and columns & {*HALP_IMAGES} and columns & {*HALP_ANSWERS} else None


def _question(columns: _Columns, benchmark: Benchmark | None, options: DatasetOptions) -> str | None:
    if options.question_column is not None:
        return options.question_column
    if benchmark == "pope":
        return "text"
    if benchmark == "conversation":
        return conversation_column(columns.table.columns) or CONVERSATION_COLUMNS[0]
    return columns.find(QUESTION_NAMES, "question")


def _images(
    columns: _Columns, benchmark: Benchmark | None, options: DatasetOptions, question: str
) -> tuple[tuple[str, ...], str | None]:
    """The image columns, and the pattern of paths if the user gives one."""
    given = options.image_column
    if isinstance(given, str) and "{" in given and given not in columns.table.columns:
        names = dict.fromkeys(found["name"] for found in NAME_IN_PATTERN.finditer(given))
        if not names or "{" in NAME_IN_PATTERN.sub("", given):
            raise MidsightError(Option("image_column"), f" is {given!r}; write a pattern like '{{image_id:012}}.jpg'.")
        for name in names:
            if name not in columns.table.columns:
                has = quoted_names(columns.table.columns)
                raise MidsightError(
                    Option("image_column"),
                    f" is {given!r}, and {columns.table.path} has no column {name!r}; it has {has}: name one of these",
                    *columns.table.other_rows,
                    ".",
                )
        return tuple(names), given
    if given is not None:
        listed = [given] if isinstance(given, str) else given
        if not listed:
            raise MidsightError(Option("image_column"), " is empty; name one or more columns.")
        return tuple(columns.named(name, "image") for name in listed), None
    if benchmark == "vlmevalkit":
        return ("image" if "image" in columns.table.columns else "image_path",), None
    if columns.table.kind == "tar":
        return _members(columns), None
    if benchmark == "halp":
        return (next(name for name in HALP_IMAGES if name in columns.table.columns),), None
    if numbered := _numbered(columns):
        return numbered, None
    found = columns.find(IMAGE_NAMES, "image")
    if found is None and benchmark == "conversation":
        return (question,), None
    return (columns.named(found or "image", "image"),), None


def _members(columns: _Columns) -> tuple[str, ...]:
    """The images of a tar file, which win over a path of them in the JSON of a row."""
    found = columns.table.image_columns
    if len(found) > 1:
        columns.notes.append(f"The images of each row are its members {quoted_names(found)}, in this order.")
    return found


def _numbered(columns: _Columns) -> tuple[str, ...]:
    """`image_1`, `image_2`, ... in the order of their numbers; also `image`, `image_2`, ...

    Beside `image`, others are not taken, which a note says.
    """
    names = columns.table.columns
    found = {name: int(match[1]) for name in names if (match := _NUMBERED_IMAGE.fullmatch(name))}
    numbered = tuple(sorted(found, key=found.__getitem__))
    if not numbered or "image" not in names:
        return numbered
    if found[numbered[0]] == 2:
        columns.notes.append(f"The images of each row are in {quoted_names(('image', *numbered))}, in this order.")
        return "image", *numbered
    columns.notes.append(f"The image is in 'image'; not used as images: {quoted_names(numbered)}.")
    return ()


def _id(columns: _Columns, benchmark: Benchmark | None, options: DatasetOptions) -> tuple[str | None, bool]:
    """The column of ids, and whether it was guessed."""
    if options.id_column == NO_COLUMN:
        return None, False
    if options.id_column is not None:
        return columns.named(options.id_column, "id"), False
    if benchmark in ("pope", "halp"):
        return "question_id", True
    if columns.table.id_column is not None:
        return columns.table.id_column, True
    if benchmark == "conversation":  # LLaVA's ids belong to images and repeat
        return ("custom_id" if "custom_id" in columns.table.columns else None), True
    names = ["id", "index"] if benchmark == "vlmevalkit" else ["id"]
    found = next((name for name in names if name in columns.table.columns), None) or columns.find(["id"], "id")
    return (None if found in columns.table.binary_columns else found), True

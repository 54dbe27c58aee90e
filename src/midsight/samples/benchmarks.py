"""Which column has which role: as the user says, or as a known benchmark has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from midsight.errors import MidsightError, Option, SampleError
from midsight.samples.options import DatasetOptions
from midsight.samples.rows import Table, quoted_names, shortened_json

Benchmark = Literal["pope", "llava", "vlmevalkit"]
"""Known by their columns. pope: question_id, image, text, label. llava: image, conversations. vlmevalkit: a TSV with
index, question, and image or image_path."""


@dataclass(frozen=True)
class Roles:
    """The column of each role."""

    benchmark: Benchmark | None
    """The benchmark that was recognised."""
    image: str
    """Column of the images."""
    question: str
    """Column of the questions; for LLaVA, of the conversations that hold them."""
    answer: str | None
    """Column of the reference answers."""
    id: str | None
    """Column of the sample ids."""

    @property
    def not_extras(self) -> set[str | None]:
        """The columns that are not kept as extras."""
        kept = {self.question} if self.benchmark == "llava" else set()
        return {self.image, self.question, self.answer, self.id} - kept

    def as_options(self) -> dict[str, str | None]:
        """Field of DatasetOptions -> column name."""
        return {
            "image_column": self.image,
            "question_column": self.question,
            "answer_column": self.answer,
            "id_column": self.id,
        }


def assign_roles(table: Table, options: DatasetOptions) -> Roles:
    """The role of each column; columns that the user names win over those of a benchmark.

    Raises MidsightError for a column that is missing or holds bytes where text is needed.
    """
    benchmark = _recognise(table, options)
    by_benchmark = _columns_of_benchmark(benchmark, table.columns)
    image = options.image_column or by_benchmark.get("image", "image")
    question = options.question_column or by_benchmark.get("question", "question")
    answer = options.answer_column or by_benchmark.get("answer")
    sample_id = options.id_column or by_benchmark.get("id")
    for role, name in (("image", image), ("question", question), ("answer", answer), ("id", sample_id)):
        if name is not None:
            _validate_column(table, name, role)
    taken = {image, question, answer, sample_id} | table.binary_columns
    free = [name for name in table.columns if name not in taken]
    if answer is None:
        answer = next((name for name in ("answer", "answers") if name in free), None)
    if sample_id is None and "id" in free and benchmark != "llava":  # LLaVA's ids belong to images and repeat
        sample_id = "id"
    return Roles(benchmark, image, question, answer, sample_id)


def _recognise(table: Table, options: DatasetOptions) -> Benchmark | None:
    columns = set(table.columns)
    has_question = options.question_column is not None or "question" in columns
    if not has_question and {"question_id", "image", "text"} <= columns:
        return "pope"
    if options.question_column == "conversations" or (not has_question and "conversations" in columns):
        return "llava"
    if table.kind == "tsv" and {"index", "question"} <= columns and columns & {"image", "image_path"}:
        return "vlmevalkit"
    return None


def _columns_of_benchmark(benchmark: Benchmark | None, columns: tuple[str, ...]) -> dict[str, str]:
    """Role -> column, for the roles in which a benchmark differs from the defaults."""
    match benchmark:
        case "pope":
            label = {"answer": "label"} if "label" in columns else {}
            return {"question": "text", "id": "question_id", **label}
        case "llava":
            return {"question": "conversations"}
        case "vlmevalkit":
            path = {} if "image" in columns else {"image": "image_path"}
            return {"id": "id" if "id" in columns else "index", **path}
    return {}


def _validate_column(table: Table, name: str, role: str) -> None:
    option = Option(f"{role}_column")
    if name not in table.columns:
        columns = quoted_names(table.columns)
        raise MidsightError(f"{table.path} has no column {name!r}; it has {columns}: choose one with ", option, ".")
    if role != "image" and name in table.binary_columns:
        raise MidsightError(f"{table.path} holds bytes in column {name!r}; choose another with ", option, ".")


def first_exchange(conversation: Any, images: int) -> tuple[str, str | None]:
    """The first question of a LLaVA conversation, without its image placeholders, and the answer to it.

    Raises SampleError if the value is not a conversation, or does not have a placeholder for each of the
    sample's `images`.
    """
    turns = conversation if isinstance(conversation, list) else []
    texts = [_text_of_turn(turn, speaker) for turn, speaker in zip(turns, ("human", "gpt"), strict=False)]
    if not texts or texts[0] is None:
        shown = shortened_json(conversation)
        raise SampleError(f"the conversation is {shown}; it must begin with a turn from 'human'.")
    placeholders = texts[0].count("<image>")
    if placeholders not in (0, images):
        raise SampleError(
            f"the first question has {placeholders} placeholders <image>, but the sample has {images} images."
        )
    return texts[0].replace("<image>", "").strip(), texts[1] if len(texts) > 1 else None


def _text_of_turn(turn: Any, speaker: str) -> str | None:
    if not isinstance(turn, Mapping) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
        return None
    return turn["value"]

"""Which columns of a table are what, by options or by the shape of a known benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from midsight.errors import MidsightError, SampleError
from midsight.samples.rows import Table, named, shown

Shape = Literal["plain", "pope", "llava", "vlmevalkit"]
"""plain: a column each. pope: question_id, image, text, label. llava: image, conversations. vlmevalkit: a TSV with
index, image or image_path, question."""


@dataclass(frozen=True)
class ColumnOptions:
    """The columns that a user names; None is the default or that of a known shape."""

    image: str | None = None
    """`image` by default."""
    question: str | None = None
    """`question` by default."""
    answer: str | None = None
    """`answer`, else `answers`, by default, if there is one."""
    id: str | None = None
    """`id` by default, if there is one."""


@dataclass(frozen=True)
class Roles:
    """Which columns are what."""

    shape: Shape
    """The shape that was recognised."""
    image: str
    """Images."""
    question: str
    """Questions; in the llava shape the conversations that hold them."""
    answer: str | None
    """Reference answers."""
    id: str | None
    """Ids."""

    @property
    def names(self) -> set[str | None]:
        """The columns that are no extras."""
        kept = {self.question} if self.shape == "llava" else set()
        return {self.image, self.question, self.answer, self.id} - kept

    def as_options(self) -> dict[str, str | None]:
        """The columns by the command's option."""
        return {
            "--image-column": self.image,
            "--question-column": self.question,
            "--answer-column": self.answer,
            "--id-column": self.id,
        }


def assign_roles(table: Table, options: ColumnOptions) -> Roles:
    """The columns' roles; what the user named wins. Raises MidsightError for a named column that is not there."""
    shape = _shape(table, options)
    wanted = {
        "image": options.image or ("image_path" if shape == "vlmevalkit" and "image" not in table.columns else "image"),
        "question": options.question or {"pope": "text", "llava": "conversations"}.get(shape, "question"),
        "answer": options.answer or ("label" if shape == "pope" and "label" in table.columns else None),
        "id": options.id
        or {"pope": "question_id", "vlmevalkit": "id" if "id" in table.columns else "index"}.get(shape),
    }
    for role, name in wanted.items():
        if name is not None and name not in table.columns:
            raise MidsightError(
                f"{table.path} has no column {name!r}; it has {named(table.columns)}: choose one with --{role}-column."
            )
        if role != "image" and name in table.binary:
            raise MidsightError(f"{table.path} holds bytes in column {name!r}; choose another with --{role}-column.")
    free = [name for name in table.columns if name not in wanted.values() and name not in table.binary]
    answer, sample_id = wanted["answer"], wanted["id"]
    if answer is None:
        answer = next((name for name in ("answer", "answers") if name in free), None)
    if sample_id is None and shape != "llava":  # LLaVA's ids are those of images and repeat
        sample_id = "id" if "id" in free else None
    return Roles(shape, wanted["image"] or "", wanted["question"] or "", answer, sample_id)


def first_exchange(conversation: Any, images: int) -> tuple[str, str | None]:
    """The first question of a LLaVA conversation, without its image placeholders, and the answer to it.

    Raises SampleError for what is no conversation, and where it does not place the sample's images.
    """
    turns = conversation if isinstance(conversation, list) else []
    texts = [_turn(turn, speaker) for turn, speaker in zip(turns, ("human", "gpt"), strict=False)]
    if not texts or texts[0] is None:
        raise SampleError(f"the conversation is {shown(conversation)}; it begins with a turn from 'human'.")
    placed = texts[0].count("<image>")
    if placed not in (0, images):
        raise SampleError(f"the first question has {placed} placeholders <image>, the sample {images} images.")
    return texts[0].replace("<image>", "").strip(), texts[1] if len(texts) > 1 else None


def _turn(turn: Any, speaker: str) -> str | None:
    if not isinstance(turn, Mapping) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
        return None
    return turn["value"]


def _shape(table: Table, options: ColumnOptions) -> Shape:
    columns = set(table.columns)
    asks_itself = options.question is not None or "question" in columns
    if not asks_itself and {"question_id", "image", "text"} <= columns:
        return "pope"
    if options.question == "conversations" or (not asks_itself and "conversations" in columns):
        return "llava"
    if table.kind == "tsv" and {"index", "question"} <= columns and columns & {"image", "image_path"}:
        return "vlmevalkit"
    return "plain"

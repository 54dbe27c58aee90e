"""Turns a row into a sample, or into a failure with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from midsight.buckets.path import Place
from midsight.errors import SampleError
from midsight.samples.answers import number_of_id, reference_answers, text_of_id
from midsight.samples.columnar import json_value
from midsight.samples.conversations import (
    first_exchange,
    has_later_questions,
    has_system_turn,
    is_conversation,
)
from midsight.samples.image_cells import ImageCells
from midsight.samples.questions import Questions
from midsight.samples.roles import Roles
from midsight.samples.rows import Row, Table, shortened_json
from midsight.samples.sample import Failure, ImageSource, Sample, SampleOrFailure, make_sample_id

MAX_TEXT = 1_000_000
"""Maximum number of characters in a cell that is not an image, because every sample's text stays in memory."""

_LONGEST_INDEX = 64
_NO_EXTRAS: Mapping[str, Any] = {}


class SampleMaker:
    """Makes the samples of one table."""

    def __init__(
        self, table: Table, roles: Roles, root: Place | None, *, allow_urls: bool = False, follow_links: bool = False
    ) -> None:
        """`root` is the folder of image files; a stream may have none."""
        self._table = table
        self._roles = roles
        self._not_extras = roles.not_extras
        self._image_cells = ImageCells(root, allow_urls=allow_urls, follow_links=follow_links)
        self._rows_without_image: list[tuple[int, Row]] = []
        """VLMEvalKit rows that name another row's image: index and row, without its cells."""
        self._images_by_index: dict[str, tuple[str, tuple[ImageSource, ...]]] = {}
        """VLMEvalKit `index` -> image reference and images."""
        self._questions = Questions()
        self._system_turns = 0
        self._later_questions = 0

    def __call__(self, row: Row, index: int) -> SampleOrFailure:
        """The sample of the row with this index, or the failure that says why there is none."""
        given_id: str | None = None
        try:
            if row.problem:
                raise SampleError(row.problem)
            given_id = self._given_id(row.cells)
            image, images = self._images(row, index)
            question, answer = self._question_and_answer(row.cells, len(images))
            question = self._questions.clean(question, len(images), place=lambda: self._place(row))
            return Sample(
                sample_id=given_id or make_sample_id(index, image, question),
                input_index=index,
                images=images,
                question=question,
                image=image,
                reference_answers=reference_answers(answer),
                extras=self._extras(row.cells),
            )
        except SampleError as error:
            return Failure(given_id or make_sample_id(index, row.raw_text, ""), index, self._reason(row, error))

    def add_images_of_other_rows(self, rows: Sequence[SampleOrFailure]) -> list[SampleOrFailure]:
        """All rows of a table, in which VLMEvalKit rows that name another row by its `index` have its images."""
        rows = list(rows)
        for index, row in self._rows_without_image:
            sample = rows[index]
            if not isinstance(sample, Sample):
                continue
            if sample.image in self._images_by_index:
                image, images = self._images_by_index[sample.image]
                rows[index] = replace(sample, image=image, images=images)
            else:
                error = SampleError(f"the image is {sample.image}, and no row with that index has an image.")
                rows[index] = Failure(sample.sample_id, index, self._reason(row, error))
        return rows

    def notes(self) -> list[str]:
        """What is to be said about the samples made so far, one sentence each."""
        notes: list[str] = []
        if self._system_turns:
            notes.append(
                f"In {self._system_turns:,} of the conversations, the system turn is left out; the option system gives "
                "all prompts the same one."
            )
        if self._later_questions:
            notes.append(
                f"In {self._later_questions:,} of the conversations, the user asks more than once; only the first "
                "question is asked."
            )
        return notes + self._questions.notes()

    def _images(self, row: Row, index: int) -> tuple[str, tuple[ImageSource, ...]]:
        """Image reference and images; none yet for a VLMEvalKit row that names another row's image."""
        columns = list(self._roles.images)
        if self._roles.benchmark != "vlmevalkit" or len(columns) > 1:
            return self._image_cells.read(row, columns, self._roles.image_pattern)
        cell = self._as_id(str(row.cells.get(columns[0]) or "").strip()) or ""
        if len(cell) <= _LONGEST_INDEX and cell.isdecimal():
            self._rows_without_image.append((index, replace(row, cells={})))
            return cell, ()
        image, images = self._image_cells.read(row, columns)
        if images:
            self._images_by_index[self._as_id(row.cells.get("index")) or ""] = (image, images)
        return image, images

    def _question_and_answer(self, cells: Mapping[str, Any], images: int) -> tuple[str, Any]:
        """The question, and the cell or text of the answer."""
        roles = self._roles
        answer = cells.get(roles.answer) if roles.answer is not None else None
        cell = cells.get(roles.question)
        if roles.benchmark == "conversation" or (not isinstance(cell, str) and is_conversation(cell)):
            question, reply = first_exchange(cell, images)
            self._system_turns += has_system_turn(cell)
            self._later_questions += has_later_questions(cell)
            return question, answer if roles.answer is not None else reply
        if roles.question not in cells:
            raise SampleError(f"there is no question (column {roles.question!r}).")
        if not isinstance(cell, str):
            remedy = "; write a row for each question" if isinstance(cell, list) else ""
            raise SampleError(f"the question is {shortened_json(cell)}, not text{remedy}.")
        return cell, answer

    def _given_id(self, cells: Mapping[str, Any]) -> str | None:
        return self._as_id(cells.get(self._roles.id)) if self._roles.id is not None else None

    def _as_id(self, value: Any) -> str | None:
        return text_of_id(number_of_id(value, self._table.kind))

    def _extras(self, cells: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in cells.items():
            if isinstance(value, str) and len(value) > MAX_TEXT and name not in self._roles.images:
                raise SampleError(
                    f"column {name!r} has {len(value):,} characters; only images may have more than {MAX_TEXT:,}."
                )
        extras = {name: value for name, value in cells.items() if name not in self._not_extras}
        if self._table.kind in ("parquet", "arrow", "stream"):
            extras = {name: json_value(value) for name, value in extras.items()}
        return extras or _NO_EXTRAS

    def _reason(self, row: Row, error: SampleError) -> str:
        return f"{self._place(row)}: {error}"

    def _place(self, row: Row) -> str:
        return row.place or f"{self._table.path}, {self._table.unit} {row.number}"

"""From a row to a sample, or to the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from midsight.errors import SampleError
from midsight.samples.columnar import plain
from midsight.samples.image_cells import ImageCells
from midsight.samples.rows import Row, Table, shown
from midsight.samples.sample import Failure, ImageSource, Sample, make_sample_id
from midsight.samples.shapes import Roles, first_exchange

MAX_TEXT = 1_000_000
"""Characters above which a cell that holds no image is refused: every sample's text stays in memory."""

_NO_EXTRAS: Mapping[str, Any] = {}


class SampleMaker:
    """Makes the samples of one table."""

    def __init__(self, table: Table, roles: Roles, root: Path | None, *, allow_urls: bool = False) -> None:
        self._table = table
        self._roles = roles
        self._named = roles.names
        self._images = ImageCells(root, allow_urls=allow_urls)
        self._borrowers: list[tuple[int, int]] = []
        self._owned: dict[str, tuple[str, tuple[ImageSource, ...]]] = {}

    def __call__(self, row: Row, index: int) -> Sample | Failure:
        """The sample of a row, or why there is none."""
        given_id: str | None = None
        roles = self._roles
        try:
            if row.problem:
                raise SampleError(row.problem)
            given_id = _given_id(row.cells.get(roles.id) if roles.id is not None else None)
            if self._borrows(row):
                image, images = row.cells[roles.image].strip(), ()
                self._borrowers.append((index, row.number))
            else:
                image, images = self._images.read(row, roles.image)
                if roles.shape == "vlmevalkit" and images:
                    self._owned[str(row.cells.get("index"))] = (image, images)
            question, answer = self._asked(row.cells, len(images))
            check_question(question)
            return Sample(
                sample_id=given_id or make_sample_id(index, image, question),
                input_index=index,
                images=images,
                question=question,
                image=image,
                reference_answers=_answers(answer),
                extras=self._extras(row.cells),
            )
        except SampleError as error:
            return Failure(given_id or make_sample_id(index, row.raw, ""), index, self._reason(row.number, error))

    def lend_images(self, outcomes: Sequence[Sample | Failure]) -> list[Sample | Failure]:
        """The outcomes, in VLMEvalKit's tables with the images that rows borrow from the row of an `index`."""
        lent = list(outcomes)
        if not self._borrowers:
            return lent
        for index, number in self._borrowers:
            borrower = lent[index]
            if not isinstance(borrower, Sample):
                continue
            if borrower.image in self._owned:
                image, images = self._owned[borrower.image]
                lent[index] = replace(borrower, image=image, images=images)
            else:
                error = SampleError(f"the image is {borrower.image}, and no row with that index has an image.")
                lent[index] = Failure(borrower.sample_id, index, self._reason(number, error))
        return lent

    def _borrows(self, row: Row) -> bool:
        """Whether the image is the `index` of another row, as VLMEvalKit writes an image that repeats."""
        if self._roles.shape != "vlmevalkit":
            return False
        cell = row.cells[self._roles.image].strip()
        return len(cell) <= 64 and cell.isdecimal()

    def _asked(self, cells: Mapping[str, Any], images: int) -> tuple[str, Any]:
        """The question, and the cell or text of the answer."""
        roles = self._roles
        answer = cells.get(roles.answer) if roles.answer is not None else None
        if roles.shape == "llava":
            question, told = first_exchange(cells.get(roles.question), images)
            return question, answer if roles.answer is not None else told
        if roles.question not in cells:
            raise SampleError(f"there is no question (column {roles.question!r}).")
        question = cells[roles.question]
        if not isinstance(question, str):
            raise SampleError(f"the question is {shown(question)}, not text.")
        return question, answer

    def _extras(self, cells: Mapping[str, Any]) -> Mapping[str, Any]:
        image = self._roles.image
        for name, value in cells.items():
            if isinstance(value, str) and len(value) > MAX_TEXT and name != image:
                raise SampleError(
                    f"column {name!r} has {len(value):,} characters; at most {MAX_TEXT:,} are kept of what is no image."
                )
        extras = {name: value for name, value in cells.items() if name not in self._named}
        if self._table.kind in ("parquet", "arrow", "stream"):
            extras = {name: plain(value) for name, value in extras.items()}
        return extras or _NO_EXTRAS

    def _reason(self, number: int, error: SampleError) -> str:
        return f"{self._table.path}, {self._table.unit} {number}: {error}"


def check_question(question: str) -> None:
    """Raises SampleError for an empty question."""
    if not question.strip():
        raise SampleError("the question is empty.")


def _given_id(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise SampleError(f"the id is {shown(value)}; give text or a whole number.")
    return str(value)


def _answers(value: Any) -> tuple[str, ...]:
    """Reference answers as text; nothing and empty text are none."""
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    values = value if isinstance(value, list) else [value]
    values = [plain(value) for value in values]
    texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values)
    return tuple(text for value, text in zip(values, texts, strict=True) if value is not None and text)

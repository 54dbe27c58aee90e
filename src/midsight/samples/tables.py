"""Datasets in: JSONL and CSV tables, and pairs from Python, as samples.

A row that cannot become a sample becomes a failure with its reason, and the others go on. What
concerns the table as a whole (no such column, ids that repeat) is a MidsightError.
"""

from __future__ import annotations

import functools
import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from midsight.errors import MidsightError, SampleError
from midsight.samples.images import image_root_path
from midsight.samples.rows import Row, check_storable, named, read_rows, shown
from midsight.samples.sample import Failure, ImageSource, Sample, make_sample_id

ExtraType = Literal["string", "int64", "float64", "bool", "json"]
"""How an extra column is stored; `json` is JSON text, for what fits none of the others."""

_EXACT_IN_FLOAT64 = 2**53


@dataclass(frozen=True)
class Dataset:
    """Everything read from one dataset: each of its rows is either a sample or a failure."""

    samples: tuple[Sample, ...]
    """In dataset order."""
    failures: tuple[Failure, ...]
    """Rows that cannot become samples, in dataset order."""
    extras: Mapping[str, ExtraType]
    """The columns beyond image, question, answer and id, and the type that all their values fit."""
    sha256: str
    """Hex; of the file's bytes, or of what `make_samples` was given."""
    path: Path | None
    """The table; None when the samples come from Python."""
    rows: int
    """How many rows were read: samples and failures."""
    options: Mapping[str, str | None] = field(default_factory=dict)
    """What else decides the meaning of a row, by the command's option: columns by role, and the folder of
    images where it is not the table's own. Empty for samples from Python."""


def read_table(
    path: str | Path,
    *,
    images: str | Path | None = None,
    image_column: str = "image",
    question_column: str = "question",
    answer_column: str | None = None,
    id_column: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """The dataset in a `.jsonl`, `.ndjson` or `.csv` file (UTF-8), its first `limit` rows if given.

    JSONL has one object a line, CSV a header row; blank lines are no rows. Image paths are relative
    to `images`, by default the table's folder, and must lie inside it; in JSONL several images are
    a list. Whether the files exist is found out when they are decoded.

    `answer_column` is by default `answer`, else `answers`, if there is one; its value is text, a
    list of texts, or nothing. Other values count as their JSON text. `id_column` is by default `id`,
    if there is one; rows without an id get one from `make_sample_id`. Every other column is an
    extra: its values stay as they are in JSONL, and are text in CSV.

    Raises MidsightError, for the table as a whole: a file that cannot be read or whose format is not
    known, a missing column, ids that repeat.
    """
    path = Path(path)
    root = path.parent if images is None else Path(images)
    if limit is not None and limit < 1:
        raise MidsightError(f"The limit is {limit}; give at least 1 row, or no limit.")
    table = read_rows(path, limit)
    if not root.is_dir():
        raise MidsightError(f"The image folder {root} is no directory; name an existing one with --images.")
    roles = _assign_roles(table.columns, path, image_column, question_column, answer_column, id_column)
    # Many questions share an image: its path is resolved once.
    resolve = functools.cache(lambda reference: image_root_path(reference, root))
    outcomes = [_outcome(row, index, roles, resolve, path) for index, row in enumerate(table.rows)]
    _refuse_repeated_ids(outcomes, [f"line {row.line}" for row in table.rows], str(path))
    extras = [name for name in table.columns if name not in roles.names]
    folder = None if root.resolve() == path.parent.resolve() else str(root.resolve())
    return replace(_dataset(outcomes, extras, table.sha256, path), options={"--images": folder, **roles.as_options()})


def make_samples(items: Iterable[tuple[ImageSource | str, str] | Sample]) -> Dataset:
    """The dataset of (image, question) pairs, in their order; Samples may stand among them.

    Images are paths (not confined to a folder: the caller chose them), encoded bytes or decoded
    images. A Sample keeps its id and gets its place as `input_index`. `sha256` covers ids, image
    references and questions, not pixels.

    Raises MidsightError for an item that is neither, and for ids that repeat.
    """
    outcomes: list[Sample | Failure] = []
    for index, item in enumerate(items):
        sample = replace(item, input_index=index) if isinstance(item, Sample) else _sample_of_pair(item, index)
        try:
            _check_question(sample.question)
            check_storable(
                [sample.sample_id, sample.image, sample.question, sample.reference_answers, dict(sample.extras)]
            )
            if not sample.images:
                raise SampleError("there is no image.")
            outcomes.append(sample)
        except SampleError as error:
            outcomes.append(Failure(sample.sample_id, index, f"Item {index}: {error}"))
    _refuse_repeated_ids(outcomes, [f"item {index}" for index in range(len(outcomes))], "The list of samples")
    digest = hashlib.sha256()
    for outcome in outcomes:
        asked = [outcome.image, outcome.question] if isinstance(outcome, Sample) else []
        digest.update(json.dumps([outcome.sample_id, *asked]).encode() + b"\n")
    extras = dict.fromkeys(name for item in outcomes if isinstance(item, Sample) for name in item.extras)
    return _dataset(outcomes, extras, digest.hexdigest(), None)


@dataclass(frozen=True)
class _Roles:
    """Which columns are what."""

    image: str
    question: str
    answer: str | None
    id: str | None

    @property
    def names(self) -> set[str | None]:
        return {self.image, self.question, self.answer, self.id}

    def as_options(self) -> dict[str, str | None]:
        return {
            "--image-column": self.image,
            "--question-column": self.question,
            "--answer-column": self.answer,
            "--id-column": self.id,
        }


def _assign_roles(
    columns: Sequence[str], path: Path, image: str, question: str, answer: str | None, sample_id: str | None
) -> _Roles:
    """The columns' roles; raises MidsightError for a named column that is not there."""
    wanted = {"image": image, "question": question, "answer": answer, "id": sample_id}
    for role, name in wanted.items():
        if name is not None and name not in columns:
            raise MidsightError(
                f"{path} has no column {name!r}; it has {named(columns)}: choose one with --{role}-column."
            )
    free = [name for name in columns if name not in wanted.values()]
    if answer is None:
        answer = next((name for name in ("answer", "answers") if name in free), None)
    if sample_id is None:
        sample_id = "id" if "id" in free else None
    return _Roles(image, question, answer, sample_id)


def _outcome(row: Row, index: int, roles: _Roles, resolve: Callable[[str], Path], path: Path) -> Sample | Failure:
    """The row's sample, or why there is none."""
    given_id: str | None = None
    try:
        if row.problem:
            raise SampleError(row.problem)
        given_id = _given_id(row.cells.get(roles.id) if roles.id is not None else None)
        references = _references(row.cells, roles.image)
        image = references[0] if len(references) == 1 else json.dumps(references, ensure_ascii=False)
        question = _text(row.cells, roles.question, "question")
        _check_question(question)
        return Sample(
            sample_id=given_id or make_sample_id(index, image, question),
            input_index=index,
            images=tuple(resolve(reference) for reference in references),
            question=question,
            image=image,
            reference_answers=_answers(row.cells.get(roles.answer) if roles.answer is not None else None),
            extras={name: value for name, value in row.cells.items() if name not in roles.names},
        )
    except SampleError as error:
        failed_id = given_id or make_sample_id(index, row.raw, "")
        return Failure(failed_id, index, f"{path}, line {row.line}: {error}")


def _sample_of_pair(item: Any, index: int) -> Sample:
    match item:
        case (str() | Path() as image, str() as question):
            reference, source = str(image), Path(image)
        case (bytes() | Image.Image() as image, str() as question):
            reference, source = "", image
        case _:
            raise MidsightError(
                f"Item {index} is {reprlib.repr(item)}; give (image, question) pairs, the image as path, bytes or "
                "PIL image and the question as text, or Sample objects."
            )
    return Sample(make_sample_id(index, reference, question), index, (source,), question, image=reference)


def _text(cells: Mapping[str, Any], column: str, role: str) -> str:
    if column not in cells:
        raise SampleError(f"there is no {role} (column {column!r}).")
    value = cells[column]
    if not isinstance(value, str):
        raise SampleError(f"the {role} is {shown(value)}, not text.")
    return value


def _check_question(question: str) -> None:
    if not question.strip():
        raise SampleError("the question is empty.")


def _references(cells: Mapping[str, Any], column: str) -> list[str]:
    """The row's image references, at least one."""
    value = cells.get(column)
    if not isinstance(value, list):
        return [_text(cells, column, "image")]
    if not value or not all(isinstance(reference, str) for reference in value):
        raise SampleError(f"the image is {shown(value)}; a list must hold one or more paths.")
    return value


def _given_id(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise SampleError(f"the id is {shown(value)}; give text or a whole number.")
    return str(value)


def _answers(value: Any) -> tuple[str, ...]:
    """Reference answers as text; nothing and empty text are none."""
    values = value if isinstance(value, list) else [value]
    texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values)
    return tuple(text for value, text in zip(values, texts, strict=True) if value is not None and text)


def _refuse_repeated_ids(outcomes: Sequence[Sample | Failure], places: Sequence[str], dataset: str) -> None:
    first: dict[str, str] = {}
    for outcome, place in zip(outcomes, places, strict=True):
        if outcome.sample_id in first:
            raise MidsightError(
                f"{dataset} has the id {outcome.sample_id!r} twice, in {first[outcome.sample_id]} and {place}; "
                "make ids unique or leave them out."
            )
        first[outcome.sample_id] = place


def _dataset(outcomes: Sequence[Sample | Failure], extras: Iterable[str], sha256: str, path: Path | None) -> Dataset:
    samples = tuple(outcome for outcome in outcomes if isinstance(outcome, Sample))
    failures = tuple(outcome for outcome in outcomes if isinstance(outcome, Failure))
    return Dataset(samples, failures, _extra_types(samples, extras), sha256, path, len(outcomes))


def _extra_types(samples: Sequence[Sample], names: Iterable[str]) -> dict[str, ExtraType]:
    """The narrowest type that holds every value of each column; nulls fit all, and nothing but nulls is string."""
    kinds: dict[str, set[str]] = {name: set() for name in names}
    for sample in samples:
        for name, value in sample.extras.items():
            if value is not None:
                kinds[name].add(_kind(value))
    return {name: _common_type(found) for name, found in kinds.items()}


def _kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) <= _EXACT_IN_FLOAT64:
            return "exact int"
        return "int64" if -(2**63) <= value < 2**63 else "json"
    return {bool: "bool", float: "float64", str: "string"}.get(type(value), "json")


def _common_type(kinds: set[str]) -> ExtraType:
    match sorted(kinds):
        case [] | ["string"]:
            return "string"
        case ["bool"]:
            return "bool"
        case ["exact int"] | ["int64"] | ["exact int", "int64"]:
            return "int64"
        case ["float64"] | ["exact int", "float64"]:
            return "float64"
        case _:
            return "json"

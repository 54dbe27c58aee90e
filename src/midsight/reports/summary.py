"""A run summarised to plain data, in one pass over its parts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from midsight.samples.sample import Failure
from midsight.store.hub import shown_place
from midsight.store.reader import Run
from midsight.store.schema import is_vector, renamed_columns, run_schema
from midsight.store.spec import ImportSpec
from midsight.store.vectors import same_as, vectors_of


@dataclass(frozen=True)
class ColumnSummary:
    """One column as it is stored."""

    name: str
    """The column."""
    type: str
    """Its Arrow type; for vectors the type of their elements."""
    shape: tuple[int, ...]
    """[rows], or [rows, width] for vectors."""


@dataclass(frozen=True)
class VectorSummary:
    """Norms and defects of the vectors of one column."""

    name: str
    """The column."""
    width: int
    """Elements of each vector."""
    mean_norm: float | None
    """Mean Euclidean norm over the finite vectors; None if there is none."""
    min_norm: float | None
    """Smallest norm."""
    max_norm: float | None
    """Largest norm."""
    constant: bool
    """Whether all rows, at least two, hold the same vector within 1e-5: nothing can be learned from it."""
    non_finite: int
    """Rows with a value that is infinite or NaN; in an imported run, rows without a vector."""


@dataclass(frozen=True)
class AnswerSummary:
    """Length of the answers, and why decoding ended."""

    finish_reasons: Mapping[str, int]
    """Samples by why decoding ended, or by `abstained`, most frequent first."""
    mean_tokens: float | None
    """Mean number of generated tokens, the stop token included; None without answers or without their tokens."""
    missing: int = 0
    """Rows without an answer, in an imported run."""


@dataclass(frozen=True)
class Summary:
    """The content of a run."""

    path: str
    """The run folder."""
    model: str
    """Name of the model, as the run's spec gives it."""
    rows: int
    """Samples that are stored."""
    failures: tuple[Failure, ...]
    """Samples that failed, by row in the dataset."""
    dataset_rows: int | None
    """Rows of the dataset; None if unknown."""
    images: int
    """Distinct images, by their pixels."""
    image_names: int | None
    """Distinct image references; None if some samples have none."""
    layers: tuple[int, ...]
    """Decoder layers of which the run has vectors, ascending."""
    columns: tuple[ColumnSummary, ...]
    """Every column, in stored order."""
    renamed: Mapping[str, str]
    """Input column -> column of the run, where the names differ."""
    vectors: tuple[VectorSummary, ...]
    """Every vector column, in stored order."""
    answers: AnswerSummary | None
    """None for a run without answers."""
    imported: ImportSpec | None = None
    """Where the rows come from, if midsight did not extract them."""


class _VectorTally:
    """Running totals of one vector column; float64, so that sums over ten million rows stay exact enough."""

    def __init__(self) -> None:
        self.first: np.ndarray | None = None
        self.rows = 0
        self.finite = 0
        self.norms = 0.0
        self.smallest = np.inf
        self.largest = -np.inf
        self.same = True

    def add(self, vectors: np.ndarray) -> None:
        first = vectors[0].copy() if self.first is None else self.first
        self.first = first
        self.same = self.same and same_as(vectors, first)
        self.rows += len(vectors)
        fine = vectors[np.isfinite(vectors).all(axis=1)]
        if len(fine):
            norms = np.sqrt(np.einsum("ij,ij->i", fine, fine, dtype=np.float64))
            self.finite += len(fine)
            self.norms += float(norms.sum())
            self.smallest = min(self.smallest, float(norms.min()))
            self.largest = max(self.largest, float(norms.max()))

    def summary(self, name: str, width: int) -> VectorSummary:
        return VectorSummary(
            name=name,
            width=width,
            mean_norm=self.norms / self.finite if self.finite else None,
            min_norm=self.smallest if self.finite else None,
            max_norm=self.largest if self.finite else None,
            constant=self.same and self.rows >= 2,
            non_finite=self.rows - self.finite,
        )


def summarise(run: Run) -> Summary:
    """The content of `run`. Reads every vector once, one row group at a time; raises DamagedRunError."""
    images, references = array("q"), array("q")  # hashes, because a million texts would take too much memory
    is_named = True
    finish_reasons: Counter[str] = Counter()
    tokens = missing = 0
    tallies = {name: _VectorTally() for name in run.vector_columns}
    answer_columns = ["answer", "finish_reason", "answer_token_ids"] if run.spec.request.answers else []
    for batch in run.batches(["image_id", "image", *answer_columns, *tallies]):
        images.extend(map(hash, batch.column("image_id").unique().to_pylist()))
        names = batch.column("image").unique().to_pylist()
        references.extend(map(hash, names))
        is_named = is_named and all(names)
        if answer_columns:
            finish_reasons.update(batch.column("finish_reason").drop_null().to_pylist())
            tokens += sum(len(chunk.flatten()) for chunk in batch.column("answer_token_ids").chunks)
            missing += batch.column("answer").null_count
        for name, tally in tallies.items():
            tally.add(vectors_of(batch, name))
    return Summary(
        path=shown_place(run.path),
        model=run.spec.model.name,
        rows=len(run),
        failures=tuple(run.failures()),
        dataset_rows=run.spec.dataset.rows,
        images=_distinct(images),
        image_names=_distinct(references) if is_named else None,
        layers=tuple(sorted({tap.layer for tap in run.taps})),
        columns=tuple(_column(field, len(run)) for field in run_schema(run.spec.columns)),
        renamed=renamed_columns(run.spec.stored_as),
        vectors=tuple(tally.summary(name, run.spec.vectors[name]) for name, tally in tallies.items()),
        answers=_answers(finish_reasons, tokens, missing) if run.spec.request.answers else None,
        imported=run.spec.imported,
    )


def _distinct(hashes: array[int]) -> int:
    return len(np.unique(np.array(hashes, np.int64)))


def _answers(finish_reasons: Counter[str], tokens: int, missing: int) -> AnswerSummary:
    answers = finish_reasons.total() - finish_reasons["abstained"]
    mean = tokens / answers if answers else None
    return AnswerSummary(dict(finish_reasons.most_common()), mean, missing - finish_reasons["abstained"])


def _column(field: pa.Field, rows: int) -> ColumnSummary:
    if is_vector(field):
        return ColumnSummary(field.name, str(field.type.value_type), (rows, field.type.list_size))
    return ColumnSummary(field.name, str(field.type), (rows,))

"""The summary of a run: plain data that becomes JSON as it is, and of which the page is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from midsight.labels.share import Share
from midsight.probes.finding import CurvePoint, Finding, Pair
from midsight.store.annotations import LabelRecord
from midsight.version import __version__

REPORT_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many of what the run has."""

    stored: int
    """Samples that are stored."""
    failed: int
    """Samples that failed."""
    dataset_rows: int | None
    """Rows of the dataset; None if unknown."""
    images: int
    """Distinct images, by their pixels."""


@dataclass(frozen=True, kw_only=True)
class FailureKind:
    """Failures with the same reason, but for names and numbers in it."""

    count: int
    """How many there are."""
    sample_id: str
    """The first of them."""
    input_index: int
    """Its row in the dataset, from 0."""
    reason: str
    """Its reason."""


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """One vector column."""

    column: str
    """The column."""
    width: int
    """Elements of each vector."""
    mean_norm: float | None
    """Mean Euclidean norm; None without finite vectors."""
    constant: bool
    """Whether all rows are equal, so that nothing can be learned from it."""
    missing: int
    """Rows without a finite vector."""


@dataclass(frozen=True, kw_only=True)
class AnswerShare:
    """Answers that are right, among those of one value of a column."""

    value: str
    """The value."""
    share: Share
    """Right answers among those with a label."""
    interval: Pair
    """Its 95 % interval, as if questions were independent."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Right answers by the values of a column."""

    column: str
    """The column; empty for all samples together."""
    values: tuple[AnswerShare, ...]
    """By value, the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the model answered, without regard to right and wrong."""

    finish_reasons: Mapping[str, int]
    """Answers by why decoding ended."""
    mean_tokens: float | None
    """Mean number of generated tokens; None if unknown."""
    missing: int
    """Rows without an answer."""
    different: int
    """Different answers, ignoring white space around them."""
    frequent: tuple[tuple[str, int], ...]
    """The most frequent ones, with their counts."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """The label that says which answers are right."""

    record: LabelRecord
    """How it was made, and what it counts."""
    figures: Mapping[str, float | None] | None
    """Accuracy, precision, recall, F1 and yes-rate; None for labels that are not about yes and no."""
    accuracy: tuple[Accuracy, ...]
    """Of all samples, and by each column with few values."""


@dataclass(frozen=True, kw_only=True)
class CalibrationPoint:
    """Samples of similar predicted probability."""

    predicted: float
    """Mean predicted probability that the label is true."""
    share: float
    """Share of true labels."""
    n: int
    """Samples."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Calibration and abstention of one score; samples were not in training with their own group."""

    score: str
    """`probe` or `confidence`."""
    calibration: tuple[CalibrationPoint, ...]
    """Bins with equally many samples, by rising probability."""
    answered: tuple[CurvePoint, ...]
    """By share answered, surest first."""


@dataclass(frozen=True, kw_only=True)
class FindingPart:
    """A finding with what the page adds to it."""

    finding: Finding
    """The finding."""
    conclusions: tuple[str, ...]
    """What may be claimed, one sentence each."""
    images: int
    """Distinct images among the samples of this run that have the label."""
    curves: tuple[Curves, ...]
    """Of the probe and of the model's confidence; empty for findings without predictions."""


@dataclass(frozen=True, kw_only=True)
class Map:
    """The two main directions of a vector column. Coordinates are by shown sample."""

    column: str
    """The column."""
    x: tuple[float | None, ...]
    """First principal component of the standardised vectors; None for a missing vector."""
    y: tuple[float | None, ...]
    """The second one."""
    explained: Pair
    """Shares of the variance that the two explain."""
    images: int
    """Distinct images among the shown samples."""
    image_only: bool | None
    """Whether all questions on an image have the same vector; None if no image has several questions."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The shown samples, in dataset order; every tuple has a value for each."""

    total: int
    """Samples of the run; more than are shown in large runs."""
    sample_id: tuple[str, ...]
    """Their ids."""
    input_index: tuple[int, ...]
    """Rows in the dataset, from 0."""
    image: tuple[str, ...]
    """Image references."""
    question: tuple[str, ...]
    """Questions."""
    answer: tuple[str | None, ...] | None
    """Answers; None for a run without answers."""
    references: tuple[tuple[str, ...], ...]
    """Reference answers."""
    label: tuple[bool | None, ...] | None
    """The label; None if the run has none."""
    risk: tuple[float | None, ...] | None
    """Probability that the label is false, from 0 to 1; None if it is not known."""
    risk_source: str
    """Where the risk comes from, in a sentence; empty without risk."""
    confidence: tuple[float | None, ...] | None
    """Probability of the first answer token; None if it is not known."""
    extras: Mapping[str, tuple[Any, ...]]
    """The dataset's other columns of text, numbers and truth values."""
    picture: tuple[int | None, ...]
    """Index among `pictures` of the sample's first image; None without one."""
    pictures: tuple[str, ...]
    """Small pictures as data URIs, each image once."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The summary of a run."""

    format: int = REPORT_FORMAT
    """Version of these fields."""
    path: str
    """The run folder."""
    spec: Mapping[str, Any]
    """What the run is: the content of run.json."""
    counts: Counts
    """How many of what."""
    failures: tuple[FailureKind, ...]
    """Failures by reason, commonest first."""
    vectors: tuple[Vectors, ...]
    """Every vector column, in stored order."""
    answers: Answers | None
    """None for a run without answers."""
    label: Label | None
    """None for a run without labels."""
    finding: FindingPart | None
    """None if the label was not probed."""
    map: Map | None
    """None without samples, or without a vector column that varies."""
    samples: Samples
    """The shown samples."""
    notes: tuple[str, ...]
    """What a reader must know about the report, one sentence each."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When it was made: UTC, ISO 8601."""
    midsight_version: str = __version__
    """The midsight that made it."""

"""Answers, and how many of them are right by the values of columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from midsight.labels.share import Share
from midsight.labels.table import figures
from midsight.labels.terminal import convention
from midsight.probes.sampling import ANSWER_KIND, answer_kind
from midsight.reports.page.content import Accuracy, Answers, AnswerShare, Label
from midsight.reports.summary import Summary
from midsight.store.annotations import LabelRecord

MOST_VALUES = 20
"""A column with more values is not one that accuracy is given by."""
FREQUENT = 10
"""Answers that are listed."""
NO_VALUE = "no value"


def answers_of(summary: Summary, table: pa.Table) -> Answers | None:
    """The answers of a run without regard to right and wrong; None for a run without answers."""
    if summary.answers is None:
        return None
    counts = Counter(answer.strip() for answer in table["answer"].to_pylist() if answer is not None)
    return Answers(
        finish_reasons=summary.answers.finish_reasons,
        mean_tokens=summary.answers.mean_tokens,
        missing=summary.answers.missing,
        different=len(counts),
        frequent=tuple(counts.most_common(FREQUENT)),
    )


def label_of(record: LabelRecord, values: Sequence[bool | None], columns: Mapping[str, Sequence[Any]]) -> Label:
    """A label with the accuracy that follows from it.

    Args:
        record: How the label was made.
        values: Its value for each row of the run.
        columns: By name, the columns that accuracy may be given by, a value for each row.

    Returns:
        The label.
    """
    everything = accuracy("", values, ["all samples"] * len(values))
    by_column = (accuracy(name, values, cells) for name, cells in columns.items() if 1 < len({*cells}) <= MOST_VALUES)
    return Label(
        record=record,
        figures=None if record.table is None else figures(record.table, convention(record)),
        accuracy=tuple(one for one in (everything, *by_column) if one.values),
    )


def accuracy(column: str, values: Sequence[bool | None], cells: Sequence[Any]) -> Accuracy:
    """Shares of true labels by the value of a column; values without any label are left out."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for value, cell in zip(values, cells, strict=True):
        if value is not None:
            name = NO_VALUE if cell is None else str(cell)
            asked[name] += 1
            right[name] += value
    shares = [(name, Share(right[name], count)) for name, count in asked.most_common()]
    return Accuracy(column=column, values=tuple(AnswerShare(value=name, share=share, interval=share.interval)
                                                for name, share in shares))  # fmt: skip


def kinds_of_references(table: pa.Table) -> dict[str, list[str]]:
    """The kind of the reference answers of each row as a column, if there are several kinds."""
    kinds = [answer_kind(references) for references in table["reference_answers"].to_pylist()]
    return {ANSWER_KIND: kinds} if len({*kinds}) > 1 else {}

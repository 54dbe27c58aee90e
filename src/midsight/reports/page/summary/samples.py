"""The samples that the page shows, as columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from midsight.reports.page.content import Samples
from midsight.reports.page.summary.risk import Risk
from midsight.reports.thumbnails import ImageOfRun
from midsight.store.spec import RunSpec

MOST_SAMPLES = 50_000
"""Samples that are shown; of larger runs as many, evenly spaced in the dataset."""
MOST_EXTRAS = 20
"""Columns of the dataset that are shown."""
EXACT = 2**53
"""Whole numbers beyond this are not exact in a browser, so they become text."""
CONFIDENCE = "first_token_top_logprobs"


def shown_rows(rows: int) -> np.ndarray:
    """The rows that are shown of so many, ascending, int64 [shown]."""
    return np.unique(np.linspace(0, rows - 1, min(rows, MOST_SAMPLES)).round().astype(np.int64)) if rows else (
        np.empty(0, np.int64)
    )  # fmt: skip


def extra_columns_of(spec: RunSpec) -> list[str]:
    """The dataset's other columns that are shown: the first ones of text, numbers and truth values."""
    plain = [column for name, column in spec.stored_as.items() if spec.extras[name] != "json"]
    return plain[:MOST_EXTRAS]


def samples_of(
    shown: pa.Table,
    total: int,
    *,
    extras: Sequence[str],
    label: Sequence[bool | None] | None,
    risk: Risk | None,
    pictures: Mapping[str, str],
) -> Samples:
    """The shown samples as columns.

    Args:
        shown: Their columns without vectors, in dataset order.
        total: Samples of the run.
        extras: The dataset's other columns that are shown.
        label: A value for each shown sample; None without a label.
        risk: Their risks; None if they are not known.
        pictures: Image id -> small picture as a data URI.

    Returns:
        The samples.
    """
    ids = shown["sample_id"].to_pylist()
    places = {image: place for place, image in enumerate(pictures)}
    return Samples(
        total=total,
        sample_id=tuple(ids),
        input_index=tuple(shown["input_index"].to_pylist()),
        image=tuple(shown["image"].to_pylist()),
        question=tuple(shown["question"].to_pylist()),
        answer=tuple(shown["answer"].to_pylist()) if "answer" in shown.column_names else None,
        references=tuple(map(tuple, shown["reference_answers"].to_pylist())),
        label=None if label is None else tuple(label),
        risk=None if risk is None else tuple(map(risk.by_sample.get, ids)),
        risk_source="" if risk is None else risk.source,
        confidence=confidence_of(shown),
        extras={name: tuple(map(_plain, shown[name].to_pylist())) for name in extras},
        picture=tuple(places.get(image) for image in shown["image_id"].to_pylist()),
        pictures=tuple(pictures.values()),
    )


def confidence_of(table: pa.Table) -> tuple[float | None, ...] | None:
    """The probability of the first token of each answer; None if the run does not have it."""
    if CONFIDENCE not in table.column_names or table[CONFIDENCE].null_count == table.num_rows:
        return None
    return tuple(math.exp(row[0]) if row else None for row in table[CONFIDENCE].to_pylist())


def images_by_need(shown: pa.Table, label: Sequence[bool | None] | None) -> dict[str, ImageOfRun]:
    """An image for each image id; those of the surest wrong answers come first."""
    sure, names = confidence_of(shown), ("image_id", "image", "input_index")
    images = [*zip(*(shown[name].to_pylist() for name in names), strict=True)]
    order = sorted(
        range(len(images)),
        key=lambda row: (label is None or label[row] is not False, -((sure[row] if sure else None) or 0.0)),
    )
    found: dict[str, ImageOfRun] = {}
    for row in order:
        image_id, reference, input_index = images[row]
        found.setdefault(image_id, ImageOfRun(reference, input_index))
    return found


def _plain(value: Any) -> Any:
    """A value as JSON and JavaScript have it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if type(value) is int and abs(value) > EXACT else value

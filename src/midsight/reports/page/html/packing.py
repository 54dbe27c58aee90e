"""The samples as JSON inside the page, with texts cut to fit into its size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from midsight.reports.page.content import Map, Report, Samples

LARGEST_PAGE_BYTES = 14_000_000
"""What pictures and samples may take together; the rest of a page takes some 100 kB."""
LIMITS = (1_000_000, 100_000, 20_000, 5_000, 2_000, 1_000, 500, 300, 200, 120, 80, 50, 30, 20, 10)
"""Most characters of a text, tried one after the other."""
REFERENCES = " | "
"""Between the reference answers of a sample."""
MAP_RANGE = 10_000
"""Coordinates in the page are whole numbers from 0 to this."""
DIGITS = 4
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What must not stand in a script element as it is."""


@dataclass(frozen=True)
class PackedSamples:
    """The data that the page's script reads."""

    json: str
    """JSON that may stand in a script element."""
    cut_after: int | None
    """Characters after which texts are cut; None if all are whole."""


def pack(report: Report) -> PackedSamples:
    """The samples and the map as JSON, with as much of the texts as fits."""
    pictures = as_script_json(list(report.samples.pictures))
    room = LARGEST_PAGE_BYTES - len(pictures)
    lengths = np.array([len(text) for text in _different_texts(report.samples)], np.int64)
    fitting = [limit for limit in LIMITS[:-1] if np.minimum(lengths, limit).sum() <= room]
    tried = ((limit, as_script_json(_data(report, limit))) for limit in (*fitting, LIMITS[-1]))
    limit, packed = next(
        (limit, packed) for limit, packed in tried if len(packed.encode()) <= room or limit == LIMITS[-1]
    )
    cut = limit if len(lengths) and lengths.max() > limit else None
    return PackedSamples(f'{packed[:-1]},"pictures":{pictures}}}', cut)


def as_script_json(value: Any) -> str:
    """JSON that a script element can hold: nothing in it ends the element or a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign, escape in _ESCAPES.items():
        text = text.replace(sign, escape)
    return text


def _data(report: Report, limit: int) -> dict[str, Any]:
    samples = report.samples
    return {
        "rows": len(samples.sample_id),
        "columns": [*_columns(report, limit)],
        "picture": list(samples.picture),
        "map": None if report.map is None else _coordinates(report.map),
    }


def _columns(report: Report, limit: int) -> Iterable[dict[str, Any]]:
    samples = report.samples
    references = [REFERENCES.join(one) for one in samples.references]
    label = report.label.record.name if report.label else ""
    yield _text("id", "sample", samples.sample_id, limit)
    yield _number("row", "row of the dataset", samples.input_index)
    yield _text("question", "question", samples.question, limit)
    if samples.answer is not None:
        yield _text("answer", "answer", samples.answer, limit)
    if any(references):
        yield _text("reference", "reference", references, limit)
    if samples.label is not None:
        yield {**_shared("label", label, samples.label), "kind": "label"}
    if samples.risk is not None:
        yield _number("risk", "risk", samples.risk)
    if samples.confidence is not None:
        yield _number("confidence", "confidence", samples.confidence)
    for name, values in samples.extras.items():
        yield {**_extra(f"extra:{name}", name, values, limit), "extra": True}
    yield _text("image", "image", samples.image, limit)


def _number(key: str, name: str, values: Sequence[float | None]) -> dict[str, Any]:
    rounded = [round(value, DIGITS) if isinstance(value, float) else value for value in values]
    return {"key": key, "name": name, "kind": "number", "values": rounded}


def _extra(key: str, name: str, values: Sequence[Any], limit: int) -> dict[str, Any]:
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {int, float}:
        return _number(key, name, values)
    return _text(key, name, [_as_text(value) for value in values], limit)


def _text(key: str, name: str, values: Sequence[str | None], limit: int) -> dict[str, Any]:
    return {**_shared(key, name, [_cut(value, limit) for value in values]), "kind": "text"}


def _shared(key: str, name: str, values: Sequence[Any]) -> dict[str, Any]:
    """A column; values that repeat are stored once, and `of` says which one each row has."""
    places: dict[Any, int] = {}
    of = [places.setdefault(value, len(places)) for value in values]
    if len(places) > 0.7 * len(values):
        return {"key": key, "name": name, "values": list(values)}
    return {"key": key, "name": name, "values": list(places), "of": of}


def _coordinates(plane: Map) -> dict[str, Any]:
    """Both axes in the same unit, from 0 to MAP_RANGE along the longer one."""
    there = [axis for axis in ([value for value in axis if value is not None] for axis in (plane.x, plane.y)) if axis]
    lows = [min(axis) for axis in there] or [0.0, 0.0]
    unit = max((max(axis) - min(axis) for axis in there), default=0.0) or 1.0
    scaled = [
        [None if value is None else round((value - low) / unit * MAP_RANGE) for value in axis]
        for axis, low in zip((plane.x, plane.y), lows, strict=True)
    ]
    return {"x": scaled[0], "y": scaled[1], "imageOnly": plane.image_only is True}


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(text: str | None, limit: int) -> str | None:
    return text if text is None or len(text) <= limit else f"{text[:limit]}…"


def _different_texts(samples: Samples) -> Iterable[str]:
    """The texts of every column, each once."""
    columns = (samples.sample_id, samples.image, samples.question, samples.answer or (), *samples.extras.values())
    for values in (*columns, [REFERENCES.join(one) for one in samples.references]):
        yield from {value for value in values if isinstance(value, str)}

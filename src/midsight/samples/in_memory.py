"""Tables that Python holds: lists of dicts, pandas and polars frames, Arrow tables, and datasets of Hugging Face."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from midsight.errors import MidsightError, Option, SampleError, counted
from midsight.samples.images import MOST_NOTES, decode_image
from midsight.samples.json_shape import choose_split
from midsight.samples.nesting import MAX_DEPTH, TOO_DEEP
from midsight.samples.rows import Row, Table, quoted_names
from midsight.samples.sample import Sample

LIBRARIES = ("pandas", "polars", "pyarrow", "datasets")
"""Packages whose tables are taken; none of them is imported for that."""


def is_table(data: Any) -> bool:
    """Whether `data` is a table that Python holds, and not pairs or Samples."""
    if type(data).__module__.partition(".")[0] in LIBRARIES:
        return not is_stream(data)
    return isinstance(data, list | tuple) and bool(data) and all(isinstance(row, Mapping) for row in data)


def is_stream(data: Any) -> bool:
    """Whether `data` is a dataset that the package `datasets` streams, in one split or several."""
    return type(data).__name__ in ("IterableDataset", "IterableDatasetDict")


def one_table(data: Any, split: str | None) -> Any:
    """The table itself, or of a `datasets.DatasetDict` the one that `split` names; raises MidsightError."""
    kind = type(data).__name__
    if kind == "DatasetDict":
        return data[choose_split(f"the {kind}", list(data), split)]
    if split is not None:
        raise MidsightError(
            Option("split", split), f" chooses one of several tables, and the {kind} is one; leave it out."
        )
    return data


def memory_table(data: Any) -> Table:
    """The table; its image paths start from the current folder, and its images stay in memory."""
    _validate_names(data)
    records = _records(data)
    columns = tuple(dict.fromkeys(map(str, _columns(data, records))))
    encoded: dict[int, bytes] = {}
    notes: list[str] = []

    def rows(_: Collection[str]) -> Iterator[Row]:
        nearly_black: list[str] = []
        for number, record in enumerate(records, start=1):
            known = len(nearly_black)
            try:
                cells = {str(name): _plain(value, encoded, nearly_black) for name, value in record.items()}
            except SampleError as error:
                yield Row(number, "", {}, str(error))
                continue
            nearly_black[known:] = [f"Row {number}: {sentence}" for sentence in nearly_black[known:]]
            notes[:] = _shortened(nearly_black)
            yield Row(number, "", cells)

    return Table(f"the {type(data).__name__}", "arrow", "row", columns, str, rows, Path(), notes=notes)


def _validate_names(data: Any) -> None:
    """Raises MidsightError if a frame has several columns of one name, of which a row would keep the last."""
    if isinstance(data, list | tuple):
        return
    counts = Counter(map(str, _columns(data, ())))
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise MidsightError(
            f"the {type(data).__name__} has several columns named {quoted_names(repeated)}; rename or remove them."
        )


def _shortened(notes: list[str]) -> list[str]:
    """The first notes about images, and how many more there are."""
    more = len(notes) - MOST_NOTES
    further = f"{counted(more, 'more image comes', 'more images come')} out nearly black."
    return [*notes[:MOST_NOTES], *([further] if more > 0 else [])]


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 over what the samples hold, image references in place of images."""
    sha256 = hashlib.sha256()
    for sample in samples:
        content = [sample.sample_id, sample.image, sample.question, sample.reference_answers, sample.extras]
        sha256.update(json.dumps(content, sort_keys=True).encode() + b"\n")
    return sha256.hexdigest()


def _columns(data: Any, records: Iterable[Mapping[Any, Any]]) -> Iterable[Any]:
    if isinstance(data, list | tuple):
        return itertools.chain.from_iterable(records)
    return data.column_names if hasattr(data, "column_names") else data.columns


def _records(data: Any) -> list[Mapping[Any, Any]]:
    """The rows as mappings; images of `datasets` stay encoded."""
    match type(data).__module__.partition(".")[0]:
        case "pandas":
            return data.to_dict("records")
        case "polars":
            return data.to_dicts()
        case "pyarrow":
            return data.to_pylist()
        case "datasets":
            return [row for batch in data.with_format("arrow").iter(1_000) for row in batch.to_pylist()]
    return list(data)


def is_picture(array: Any) -> bool:
    """Whether a numpy array holds the grey or colour values of an image: uint8 [height, width] or [..., 3 or 4]."""
    return str(array.dtype) == "uint8" and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))


def _plain(value: Any, encoded: dict[int, bytes], notes: list[str], depth: int = 1) -> Any:
    """A cell as a table file would give it; decoded images are encoded once, without loss.

    `depth` counts the lists and mappings around it. Raises SampleError for those that are too deep.
    """
    if depth >= MAX_DEPTH and isinstance(value, list | tuple | Mapping):
        raise SampleError(TOO_DEEP)
    if isinstance(value, Image.Image):
        if id(value) not in encoded:
            buffer = io.BytesIO()
            decode_image(value, note=notes.append).save(buffer, "PNG")
            encoded[id(value)] = buffer.getvalue()
        return encoded[id(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item, encoded, notes, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item, encoded, notes, depth + 1) for name, item in value.items()}
    if type(value).__module__ == "numpy":
        if is_picture(value):
            if id(value) not in encoded:
                encoded[id(value)] = _plain(Image.fromarray(value), {}, notes)
            return encoded[id(value)]
        listed = value.tolist()
        is_of_numbers = isinstance(listed, list) and value.dtype != object  # perhaps the millions of an image
        return listed if is_of_numbers else _plain(listed, encoded, notes, depth)
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    return value

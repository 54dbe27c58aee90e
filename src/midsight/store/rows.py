"""Which rows of a run are read, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from midsight.buckets.path import Place
from midsight.errors import DamagedRunError, MidsightError, Option, counted
from midsight.store.commits import Commit

Samples = Sequence[str] | Sequence[bool] | np.ndarray
"""Rows of a run: sample ids in the wanted order, or a mask over the rows in dataset order."""


@dataclass(frozen=True)
class Rows:
    """Rows of a run in the order in which they are wanted."""

    places: np.ndarray
    """Place in that order, for every stored row; -1 if the row is left out. int64 [stored rows]."""
    count: int
    """How many rows are wanted."""

    @classmethod
    def of_stored(cls, wanted: np.ndarray, stored_rows: int) -> Rows:
        """The stored rows with the indices `wanted`, in that order, of a run with `stored_rows` rows."""
        places = np.full(stored_rows, -1, np.int64)
        places[wanted] = np.arange(len(wanted))
        return cls(places, len(wanted))

    def wants(self, start: int, count: int) -> bool:
        """Whether any of the `count` stored rows from `start` on is wanted."""
        return bool((self.places[start : start + count] >= 0).any())

    def place(self, batch: pa.Table, start: int) -> tuple[pa.Table, np.ndarray]:
        """The wanted rows of `batch`, whose first row is the stored row `start`, with their places."""
        places = self.places[start : start + batch.num_rows]
        wanted = places >= 0
        return (batch, places) if wanted.all() else (batch.filter(pa.array(wanted)), places[wanted])


def samples_array(samples: Any, rows: int) -> np.ndarray:
    """The argument `samples` of a reader as an array: bool [rows] for a mask, or ids as objects.

    Raises MidsightError if it is neither, if a mask does not have `rows` values, or if an id comes twice.
    """
    array = samples if isinstance(samples, np.ndarray) else np.asarray(samples, object)
    if array.ndim != 1:
        raise MidsightError(
            Option("samples"),
            f" is a {type(samples).__name__}; give a list of sample ids, or a mask with true or false for every row.",
        )
    values = array.tolist()
    if len(values) == rows and all(isinstance(value, bool | np.bool_) for value in values):
        return np.array(values, np.bool_)
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        raise MidsightError(
            Option("samples"),
            f" holds {counted(len(values), 'value')}, and {wrong[0]!r} is not a sample id; give ids as text, or a mask "
            f"with true or false for every row ({rows:,}).",
        )
    [(sample_id, times)] = Counter(values).most_common(1) or [("", 0)]
    if times > 1:
        raise MidsightError(Option("samples"), f" holds the id {sample_id!r} {times} times; give each id once.")
    return array


def places_of(path: Place, stored: Iterable[list[str]], wanted: Iterable[str]) -> np.ndarray:
    """Index among the `stored` ids of each of the `wanted` ones, int64 [wanted].

    Raises MidsightError, naming the run folder `path`, if one is not stored.
    """
    found = dict.fromkeys(wanted, -1)
    index = 0
    for sample_ids in stored:
        for sample_id in sample_ids:
            if sample_id in found:
                found[sample_id] = index
            index += 1
    missing = [sample_id for sample_id, index in found.items() if index < 0]
    if missing:
        raise MidsightError(
            f"{path} does not hold {len(missing)} of the ",
            Option("samples"),
            f", for example {min(missing)!r}; take them off the list.",
        )
    return np.fromiter(found.values(), np.int64, len(found))


def require_distinct_rows(path: Place, commits: Sequence[Commit], input_index: np.ndarray) -> None:
    """Raises DamagedRunError, naming two of the `commits`, if they hold the same row of the dataset.

    `input_index` has the row in the dataset of every stored row of the run folder `path`, int64 [stored rows].
    """
    order = np.argsort(input_index, kind="stable")
    indices = input_index[order]
    repeated = np.flatnonzero(indices[1:] == indices[:-1])
    if len(repeated):
        ends = np.cumsum([commit.rows for commit in commits])
        held = np.searchsorted(ends, order[repeated[0] : repeated[0] + 2], side="right")
        first, second = (commits[index].name for index in held)
        raise DamagedRunError(
            f"The row {indices[repeated[0]]} of the dataset is in two commits, {first} and {second}, so files of "
            f"two runs were mixed; `midsight verify {path}` names them."
        )

"""Verdicts from a file, joined to a run by sample id."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError, Option
from midsight.labels.judge import Verdict
from midsight.samples.places import find_place
from midsight.samples.rows import quoted_names, shortened_json
from midsight.samples.sources import open_table

RIGHT_WORDS = frozenset(("true", "yes", "y", "correct", "right", "1", "1.0", "t"))
WRONG_WORDS = frozenset(("false", "no", "n", "incorrect", "wrong", "0", "0.0", "f"))


@dataclass(frozen=True)
class Outside:
    """The verdicts of a file."""

    verdicts: Mapping[str, Verdict]
    """By sample id."""
    repeated: int
    """Rows that repeat an id with the same verdict."""


def read_verdicts(
    path: str | Path, id_column: str, column: str, *, threshold: float | None, null_words: Collection[str]
) -> Outside:
    """The verdicts in `column` of a table file.

    Args:
        path: JSONL, JSON, CSV, TSV or Parquet.
        id_column: Column of sample ids; compared as text.
        column: Column of verdicts: true or false, 1 or 0, words like yes and incorrect, or scores.
        threshold: The lowest score that is right; None if the verdicts are not scores.
        null_words: Words that mean undecided, besides an empty cell.

    Returns:
        What the file says.

    Raises:
        MidsightError: The file cannot be read, a column is missing, a verdict is none of these, or an id has two.
    """
    table = open_table(find_place(path))
    for option, name in (("id", id_column), ("column", column)):
        if name not in table.columns:
            raise MidsightError(
                f"{path} has no column {name!r}; choose from {quoted_names(table.columns)} with ", Option(option), "."
            )
    nulls = {word.strip().lower() for word in null_words} | {""}
    verdicts: dict[str, Verdict] = {}
    repeated = 0
    for row in table.rows(""):
        where = f"{path}, {table.unit} {row.number}"
        if row.problem:
            raise MidsightError(f"{where} cannot be read: {row.problem}")
        sample_id = cell_text(row.cells.get(id_column))
        verdict = _verdict(row.cells.get(column), threshold, nulls, where)
        if verdicts.setdefault(sample_id, verdict) != verdict:
            raise MidsightError(f"{where} gives the id {sample_id!r} another verdict than before; keep one of the two.")
        repeated += 1
    return Outside(verdicts, repeated - len(verdicts))


def cell_text(value: Any) -> str:
    """A cell as text; 7.0, which some tools make of 7, is `7`."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _verdict(value: Any, threshold: float | None, nulls: Collection[str], where: str) -> Verdict:
    word = "" if value is None or value != value else str(value).strip().lower()  # NaN is not equal to itself
    if word in nulls or cell_text(value).lower() in nulls:
        return Verdict(None)
    if threshold is not None:
        score = _score(word)
        if score is None:
            raise MidsightError(
                f"{where} holds {shortened_json(value)}, which is not a score; name words that mean undecided with ",
                Option("null_words"), ".",
            )  # fmt: skip
        return Verdict(score >= threshold, score)
    if word in RIGHT_WORDS or word in WRONG_WORDS:
        return Verdict(word in RIGHT_WORDS)
    raise MidsightError(
        f"{where} holds {shortened_json(value)}, which is neither right nor wrong; give ", Option("threshold"),
        " if these are scores, or name it with ", Option("null_words"), " if it means undecided.",
    )  # fmt: skip


def _score(word: str) -> float | None:
    try:
        return score if isfinite(score := float(word)) else None
    except ValueError:
        return None

"""The columns that a prompt may use, and which part of a sample holds their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from midsight.samples.extras import ExtraType

ColumnSource = Literal["extra", "question", "image", "answer", "id"]
"""Which part of a sample holds the value of a column."""

ROLES: Mapping[str, ColumnSource] = {
    "image_column": "image", "question_column": "question", "answer_column": "answer", "id_column": "id",
}  # fmt: skip


def prompt_columns(extras: Mapping[str, ExtraType], options: Mapping[str, Any]) -> dict[str, ColumnSource]:
    """Column -> where a sample has its value; of a dataset's extras and of the options that it was read with."""
    columns: dict[str, ColumnSource] = dict.fromkeys(extras, "extra")
    for role, source in ROLES.items():
        if isinstance(name := options.get(role), str):
            columns[name] = source
    return columns

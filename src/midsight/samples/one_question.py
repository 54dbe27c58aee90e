"""One question for every row of a table that has none."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from midsight.errors import MidsightError, Option
from midsight.samples.options import DatasetOptions
from midsight.samples.roles import QUESTION_NAMES, find_questions
from midsight.samples.rows import Row, Table


def with_question(table: Table, options: DatasetOptions) -> Table:
    """The table, with the option `question` as the question of each row if it is given.

    Raises MidsightError if the table has questions of its own.
    """
    if options.question is None:
        return table
    if (own := find_questions(table, options)) is not None:
        raise MidsightError(
            f"{table.path} has questions of its own in the column {own!r}; leave ", Option("question"), " out."
        )
    asked = {QUESTION_NAMES[0]: options.question}

    def rows(images: Collection[str]) -> Iterator[Row]:
        return (row if row.problem else replace(row, cells={**row.cells, **asked}) for row in table.rows(images))

    return replace(table, columns=(*table.columns, *asked), rows=rows)

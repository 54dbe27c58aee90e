"""Reference answers, and those that a dataset keeps in a file of their own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError, Option, SampleError, counted
from midsight.samples.columnar import json_value
from midsight.samples.options import DatasetOptions
from midsight.samples.places import find_place
from midsight.samples.roles import find_column
from midsight.samples.rows import Row, Table, TableKind, quoted_names, shortened_json
from midsight.samples.sources import open_beginning, open_table
from midsight.samples.written_lists import written_texts

ANSWER_COLUMNS = ("answers", "answer", "multiple_choice_answer", "label", "truth", "gt_answer")
"""Names of the answers in a file of answers, the first that it has."""
_WHOLE_FLOAT = re.compile(r"\d{1,15}\.0")


def reference_answers(value: Any) -> tuple[str, ...]:
    """Reference answers as text, without nulls and empty texts; of an object, its field `answer`.

    A text that lists texts, such as `['a', 'b']`, is these; a list of numbers is one answer.
    """
    if value is None or isinstance(value, str):
        return tuple(filter(None, written_texts(value) or (value,))) if value else ()
    values = [inner for item in (value if isinstance(value, list | tuple) else [value]) for inner in _plain(item)]
    texts = (item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in values)
    return tuple(text for item, text in zip(values, texts, strict=True) if item is not None and text)


def _plain(item: Any) -> list[Any]:
    """The answers in an item, with JSON types only; a whole number that became a float is written without `.0`.

    `datasets` makes one object of a list of objects, with a list for each field.
    """
    item = json_value(item)
    if isinstance(item, Mapping):
        listed = next((item[name] for name in ("answer", "text") if isinstance(item.get(name), list)), None)
        if listed is not None:
            return [inner for each in listed for inner in _plain(each)]
        item = item.get("answer", item)
    if item != item:  # NaN, which pandas writes for null
        return []
    return [int(item) if isinstance(item, float) and item.is_integer() else item]


def number_of_id(value: Any, kind: TableKind) -> Any:
    """The number in an id like `1.0` of a CSV or TSV, which pandas writes beside nulls; any other id as it is."""
    is_text = kind in ("csv", "tsv") and isinstance(value, str)
    return float(value) if is_text and _WHOLE_FLOAT.fullmatch(value.strip()) else value


def text_of_id(value: Any) -> str | None:
    """An id as text; None for null, NaN and blank text. 1.0 is `1`, because pandas makes floats of ids beside nulls.

    Raises SampleError for any other value.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise SampleError(f"the id is {shortened_json(value)}; give text or a whole number.")
    return str(value)


def join_answers(table: Table, options: DatasetOptions) -> tuple[Table, str]:
    """The table with the columns of `options.answers_from`, joined on a column; and the name of the answers' column.

    Raises MidsightError if the file has no such column or repeats a value of it, or if no row has an answer.
    """
    on, on_other = columns_to_join(table, options)
    path = find_place(options.answers_from)
    if beginning := open_beginning(path):  # a wrong file is refused before all of it is read
        _columns_of_answers(beginning, on_other, options)
    other = open_table(path)
    on_other, answer = _columns_of_answers(other, on_other, options)
    new = tuple(name for name in other.columns if name not in table.columns and name not in (answer, on_other))
    found = _read(other, on_other, answer, new)
    notes = [*table.notes]

    def rows(images: Collection[str]) -> Iterator[Row]:
        count = without = 0
        for row in table.rows(images):
            count += 1
            joined = found.get(_key(row.cells.get(on), table) or "")
            without += joined is None
            yield row if row.problem else replace(row, cells={**row.cells, **(joined or {answer: None})})
        if count and count == without:
            raise MidsightError(
                f"No row of {table.path} has the {on} of one in {path}; choose another ", Option("on"), "."
            )
        if without:
            notes.append(
                f"{without:,} of {counted(count, 'row')} {'has' if without == 1 else 'have'} no answer in {path}."
            )

    digest = lambda: hashlib.sha256(f"{table.sha256()}{other.sha256()}{options.on}".encode()).hexdigest()  # noqa: E731
    columns = tuple(dict.fromkeys((*table.columns, answer, *new)))
    return replace(table, columns=columns, rows=rows, sha256=digest, notes=notes), answer


def columns_to_join(table: Table, options: DatasetOptions) -> tuple[str, str]:
    """The column that `options.on` names in the table, and the one in the file of answers.

    Raises MidsightError if none is named, or if the table does not have it.
    """
    if not isinstance(options.answers_from, str | Path):
        raise MidsightError(
            Option("answers_from"),
            f" is a {type(options.answers_from).__name__}; give a file, or join the tables before the call.",
        )
    if options.on is None:
        raise MidsightError(
            Option("answers_from"), " needs the column that both files have; name it with ", Option("on"), "."
        )
    on, _, on_other = options.on.partition("=")
    return _require_column(table, on), on_other or on


def _require_column(table: Table, name: str) -> str:
    found = find_column(table, name)
    if found is None:
        has = quoted_names(table.columns)
        raise MidsightError(f"{table.path} has no column {name!r}; it has {has}: choose one with ", Option("on"), ".")
    return found


def _columns_of_answers(table: Table, on: str, options: DatasetOptions) -> tuple[str, str]:
    """The columns `on` and of the answers in a file of answers; raises MidsightError if it does not have both."""
    on = _require_column(table, on)
    names = [options.answer_column] if options.answer_column else ANSWER_COLUMNS
    answer = next((found for name in names if (found := find_column(table, name))), None)
    if answer is None:
        has = quoted_names(table.columns)
        raise MidsightError(
            f"{table.path} has no column of answers that is known; it has {has}: choose one with ",
            Option("answer_column"),
            ".",
        )
    return on, answer


def _read(table: Table, on: str, answer: str, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Value of `on` -> cells, the answers as texts, which take little memory."""
    found: dict[str, dict[str, Any]] = {}
    for row in table.rows(()):
        key = _key(row.cells.get(on), table)
        if key is None:
            continue
        if key in found:
            raise MidsightError(
                f"{table.path} has {key!r} twice in {on!r}; choose another column with ", Option("on"), "."
            )
        found[key] = {name: row.cells[name] for name in names if name in row.cells}
        found[key][answer] = list(reference_answers(row.cells.get(answer)))
    return found


def _key(value: Any, table: Table) -> str | None:
    """The text by which rows are joined; None if there is none."""
    try:
        return text_of_id(number_of_id(value, table.kind))
    except SampleError:
        return None

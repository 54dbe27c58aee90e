"""The risks of a dataset as one table: a row for each sample, failures with their reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from midsight.errors import MidsightError, Option
from midsight.store.csv_export import csv_lines
from midsight.store.export_target import new_target
from midsight.store.reader import Run

RISK_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("input_index", pa.int64(), nullable=False),
        pa.field("image", pa.string()),
        pa.field("question", pa.string()),
        pa.field("risk", pa.float64()),
        pa.field("first_token_max", pa.float32()),
        pa.field("first_token_entropy", pa.float32()),
        pa.field("first_token_margin", pa.float32()),
        pa.field("failure", pa.string()),
    ]
)
"""What the table holds; docs/score.md explains the columns."""
ROWS = 10_000
"""Rows that are written at a time."""


def risk_table(run: Run) -> pa.Table:
    """The table of a run that has risks: stored and failed samples, in dataset order."""
    stored = run.table()
    likeliest = [(*row, None)[:2] for row in stored["first_token_top_logprobs"].to_pylist()]
    known = {
        **{name: stored[name] for name in ("sample_id", "input_index", "image", "question", "risk")},
        "first_token_max": pa.array([first for first, _ in likeliest], pa.float32()),
        "first_token_entropy": stored["first_token_entropy"],
        "first_token_margin": pa.array(
            [None if second is None else first - second for first, second in likeliest], pa.float32()
        ),
        "failure": pa.nulls(stored.num_rows, pa.string()),
    }
    schema = RISK_SCHEMA
    for index, field in enumerate(RISK_SCHEMA):
        if pa.types.is_large_string(known[field.name].type):  # more than 2 GiB
            schema = schema.set(index, field.with_type(pa.large_string()))
    rows = pa.table([known[field.name].cast(field.type) for field in schema], schema=schema)
    failed = [
        {"sample_id": one.sample_id, "input_index": one.input_index, "failure": one.reason} for one in run.failures()
    ]
    return pa.concat_tables([rows, pa.Table.from_pylist(failed, schema)]).sort_by("input_index")


def require_table_name(out: Path) -> None:
    """Raises MidsightError for a name that says none of the formats."""
    if out.suffix.lower() not in WRITERS:
        raise MidsightError(Option("out"), f" is {out}; end its name with {', '.join(WRITERS)}.")


def write_table(run: Run, table: pa.Table, out: Path, *, overwrite: bool) -> None:
    """Writes a table made of a run to `out`, whole or not at all, in the format that its name says.

    Raises MidsightError if something that may not be replaced is there, RunError if the disk refuses.
    """
    require_table_name(out)
    suffix = out.suffix.lower()
    with new_target(run, out, suffix.removeprefix("."), folder_of=None, overwrite=overwrite) as made:
        WRITERS[suffix](table, made)


def _write_jsonl(table: pa.Table, made: Path) -> None:
    with made.open("w", encoding="utf-8", newline="\n") as file:
        for row in _rows(table):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _rows(table: pa.Table) -> Iterator[dict[str, object]]:
    """The rows, floats of 32 bits as the shortest number that reads back as the same."""
    for start in range(0, table.num_rows, ROWS):
        piece = table.slice(start, ROWS)
        columns = [
            [None if value is None else float(value) for value in piece[field.name].cast(pa.string()).to_pylist()]
            if pa.types.is_float32(field.type)
            else piece[field.name].to_pylist()
            for field in table.schema
        ]
        for values in zip(*columns, strict=True):
            yield dict(zip(table.column_names, values, strict=True))


def _write_csv(table: pa.Table, made: Path) -> None:
    with made.open("wb") as file:
        file.writelines(csv_lines(table))


def _write_parquet(table: pa.Table, made: Path) -> None:
    pq.write_table(table, made, compression="zstd", write_page_checksum=True)


WRITERS: Mapping[str, Callable[[pa.Table, Path], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
"""How each format is written, by suffix."""

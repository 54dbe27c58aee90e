"""Writes small tables of every kind with images inside."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from support.pictures import encoded, picture

PICTURES = [picture((12 + 4 * i, 9), i) for i in range(5)]
ENCODED = [encoded(one) for one in PICTURES]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def as_struct(values: list[Any], type_: pa.DataType = STRUCT) -> pa.Array:
    return pa.array([None if v is None else {"bytes": v, "path": "image.png"} for v in values], type_)


def write_parquet(path: Path, image: pa.Array, *, row_group_size: int = 2, **columns: Any) -> Path:
    questions = pa.array([f"What is {i}?" for i in range(len(image))])
    pq.write_table(pa.table({"image": image, "question": questions, **columns}), path, row_group_size=row_group_size)
    return path


def write_arrow(folder: Path, image: pa.Array, *, rows_of_a_batch: int = 2, **columns: Any) -> Path:
    """Writes a dataset as `datasets` saves it."""
    folder.mkdir(parents=True)
    table = pa.table({"image": image, "question": pa.array([f"What is {i}?" for i in range(len(image))]), **columns})
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=rows_of_a_batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_text(path: Path, values: list[Any]) -> Path:
    """Writes JSONL, a JSON array, CSV or TSV with these values as images."""
    rows = [{"n": i, "image": value, "question": f"What is {i}?"} for i, value in enumerate(values)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path

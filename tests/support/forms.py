"""One table in the many forms that files have."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = [{"id": f"n{i}", "image": f"{i}.png", "question": f"What is {i}?", "answer": "yes"} for i in range(3)]


def delimited(rows, delimiter):
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, rows[0], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def by_id(rows):
    return json.dumps({row["id"]: {name: value for name, value in row.items() if name != "id"} for row in rows})


WRITERS = {
    "a.jsonl": lines,
    "lines.json": lines,
    "a.json": json.dumps,
    "pretty.json": lambda rows: json.dumps(rows, indent=2),
    "array.jsonl": json.dumps,
    "data.json": lambda rows: json.dumps({"version": [1], "info": {"data": [1]}, "data": rows}, indent=1),
    "questions.json": lambda rows: json.dumps({"info": {}, "questions": rows, "license": {}}),
    "by_id.json": by_id,
    "a.csv": lambda rows: delimited(rows, ","),
    "semicolon.csv": lambda rows: delimited(rows, ";"),
    "a.tsv": lambda rows: delimited(rows, "\t"),
}
COMPRESSED = {".gz": gzip.compress, ".xz": lzma.compress}


def write(folder: Path, name: str, rows) -> Path:
    """The rows in the form that the name stands for; `.gz` and `.xz` compress, `shards` are two files."""
    path = folder / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name == "shards":
        path.mkdir()
        (path / "part-0.jsonl").write_text(lines(rows[:1]))
        (path / "part-1.jsonl").write_text(lines(rows[1:]) or "\n")
    elif path.suffix in COMPRESSED:
        path.write_bytes(COMPRESSED[path.suffix](WRITERS[path.stem](rows).encode()))
    else:
        path.write_bytes(WRITERS[name](rows).encode())
    return path


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def content(dataset):
    return [(s.sample_id, s.image, s.question, s.reference_answers, dict(s.extras)) for s in dataset.samples]

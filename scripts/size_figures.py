"""Measures the compressed share of a run's vectors, by column; midsight estimates the size of a run with it.

Usage: .venv/bin/python scripts/size_figures.py
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

import midsight
from midsight.demo.show import write_questions
from midsight.testing import write_phi4_multimodal


def main() -> None:
    """Extracts the demo's questions in each pair of dtypes, and prints bytes on disk per byte of vectors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_phi4_multimodal(folder / "model")
        images = write_questions(folder / "questions.jsonl")
        for dtype in ("float32", "bfloat16"):
            model = midsight.load(checkpoint, dtype=dtype, device="cpu")
            for store_dtype in ("float32", "float16"):
                run = midsight.extract(
                    folder / "questions.jsonl", model=model, images=images, out=folder / f"{dtype}-{store_dtype}",
                    layers="all", positions="vision_token,query_token,image_mean", max_new_tokens=20,
                    store_dtype=store_dtype,
                )  # fmt: skip
                print(f"computed in {dtype}, stored as {store_dtype}:", describe(run))


def describe(run: midsight.Run) -> str:
    """Compressed share by kind of vector, and bytes per row of the other columns."""
    stored: Counter[str] = Counter()
    raw: Counter[str] = Counter()
    itemsize = 4 if run.spec.request.store_dtype == "float32" else 2
    for part in sorted((run.path / "parts").glob("*.parquet")):
        metadata = pq.ParquetFile(part).metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(group.column, range(metadata.num_columns)):
                name = column.path_in_schema.removesuffix(".list.element")
                kind = name.partition(".")[0] if name in run.spec.vectors else "other columns"
                stored[kind] += column.total_compressed_size
                raw[kind] += run.spec.vectors.get(name, 0) * itemsize * group.num_rows
    shares = [f"{kind} {stored[kind] / raw[kind]:.2f}" for kind in stored if raw[kind]]
    return ", ".join([*shares, f"other columns {stored['other columns'] / len(run):.0f} bytes a row"])


if __name__ == "__main__":
    main()

"""What a run folder reads as, row by row, to be held against what it ought to be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from faults.experiment import demand
from midsight.samples.sample import Failure
from midsight.store import open_run
from midsight.store.reader import vectors_of
from midsight.store.verify import verify_run


@dataclass(frozen=True)
class Content:
    """All that a run reads as."""

    rows: dict[str, str]
    """SHA-256 over every column of the row, bit for bit, by sample id."""
    failures: dict[str, Failure]
    """By sample id."""


def content_of(path: Path) -> Content:
    """Reads all of a run; raises DoesNotHoldError where a sample comes twice."""
    run = open_run(path)
    rows: dict[str, str] = {}
    for batch in run.batches(run.columns):
        vectors = [vectors_of(batch, name) for name in run.vector_columns]
        for i, row in enumerate(batch.drop_columns(list(run.vector_columns)).to_pylist()):
            demand(row["sample_id"] not in rows, f"the sample {row['sample_id']} is stored twice")
            bits = hashlib.sha256(repr(row).encode())
            for column in vectors:
                bits.update(column[i].tobytes())
            rows[row["sample_id"]] = bits.hexdigest()
    demand(len(rows) == len(run), f"the run says {len(run)} rows and has {len(rows)}")
    return Content(rows, {failure.sample_id: failure for failure in run.failures()})


def demand_part_of(path: Path, whole: Content) -> bool:
    """Demands that what the run at `path` holds by now is a part of `whole`; whether there was a run to read."""
    if not (path / "run.json").exists():
        demand(not any(path.glob("parts/*.json")), "there are commits and no run.json")
        return False
    now = content_of(path)
    demand(now.rows.items() <= whole.rows.items(), "a row is not that of the uninterrupted run")
    demand(now.failures.items() <= whole.failures.items(), "a failure is not that of the uninterrupted run")
    return True


def demand_sound(path: Path) -> None:
    """Demands that verification finds nothing, where a run has begun."""
    if (path / "run.json").exists():
        findings = verify_run(path).findings
        demand(not findings, f"verify finds: {findings[0].problem if findings else ''}")


def demand_whole(path: Path, whole: Content) -> None:
    """Demands that the run at `path` holds all of `whole`, each sample once, and is sound."""
    demand(content_of(path) == whole, "the finished run is not the uninterrupted run")
    demand_sound(path)

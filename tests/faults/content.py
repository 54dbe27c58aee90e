"""The content of a run folder, row by row, to compare with the expected one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from faults.experiment import require
from midsight.buckets.path import Place
from midsight.samples.sample import Failure
from midsight.store import open_run
from midsight.store.reader import vectors_of
from midsight.store.verify import verify_run


@dataclass(frozen=True)
class Content:
    """Everything that a run returns to readers."""

    rows: dict[str, str]
    """SHA-256 over all columns of a row, by sample id."""
    failures: dict[str, Failure]
    """Failures by sample id."""


def content_of(path: Place) -> Content:
    """Reads a whole run; raises ExperimentError if a sample is in it twice."""
    run = open_run(path)
    rows: dict[str, str] = {}
    for batch in run.batches(run.columns):
        vectors = [vectors_of(batch, name) for name in run.vector_columns]
        for i, row in enumerate(batch.drop_columns(list(run.vector_columns)).to_pylist()):
            require(row["sample_id"] not in rows, f"the sample {row['sample_id']} is stored twice")
            bits = hashlib.sha256(repr(row).encode())
            for column in vectors:
                bits.update(column[i].tobytes())
            rows[row["sample_id"]] = bits.hexdigest()
    require(len(rows) == len(run), f"the run says {len(run)} rows and has {len(rows)}")
    return Content(rows, {failure.sample_id: failure for failure in run.failures()})


def require_part_of(path: Place, whole: Content) -> bool:
    """Requires that the run at `path` holds a part of `whole`; returns whether there is a run."""
    if not (path / "run.json").exists():
        require(not any(path.glob("parts/*.json")), "there are commits but no run.json")
        return False
    now = content_of(path)
    require(now.rows.items() <= whole.rows.items(), "a row differs from the uninterrupted run")
    require(now.failures.items() <= whole.failures.items(), "a failure differs from the uninterrupted run")
    return True


def require_sound(path: Place) -> None:
    """Requires that verification finds no damage, if there is a run."""
    if (path / "run.json").exists():
        findings = verify_run(path).findings
        require(not findings, f"verify finds: {findings[0].problem if findings else ''}")


def require_complete(path: Place, whole: Content) -> None:
    """Requires that the run at `path` holds all of `whole`, each sample once, without damage."""
    require(content_of(path) == whole, "the finished run differs from the uninterrupted run")
    require_sound(path)

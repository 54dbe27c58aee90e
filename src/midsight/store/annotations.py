"""Annotations: named columns that are added to a finished run, beside its parts and without changing them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from midsight.buckets.path import Place
from midsight.errors import DamagedRunError, MidsightError, Option
from midsight.store.files import open_seal, read_json, reporting_disk_errors, write_atomically, write_sealed_json
from midsight.store.typed_json import MAY_BE_MISSING, WrongJsonError, from_json, to_json
from midsight.version import __version__

ANNOTATIONS = "annotations"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")

LABEL_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("value", pa.bool_()),
        pa.field("score", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)
"""A label: the value, the score it follows from if there is one, and why the value is null."""


@dataclass(frozen=True, kw_only=True)
class YesNoTable:
    """Answers by what they say and by what is right, for yes/no questions."""

    yes_yes: int
    """The answer says yes and the reference too: true positives."""
    yes_no: int
    """The answer says yes, the reference no: false positives."""
    no_yes: int
    """The answer says no, the reference yes: false negatives."""
    no_no: int
    """Both say no: true negatives."""
    neither_yes: int
    """The answer says neither, the reference yes."""
    neither_no: int
    """The answer says neither, the reference no."""


@dataclass(frozen=True, kw_only=True)
class LabelRecord:
    """How a label was made, and what it counts."""

    run_id: str
    """The run that it belongs to."""
    name: str
    """The label's name."""
    source: str
    """The judge's name, or the file that the verdicts come from."""
    options: Mapping[str, str]
    """What changed the verdicts, by option."""
    right: int
    """Samples whose value is true."""
    wrong: int
    """Samples whose value is false."""
    undecided: int
    """Samples without a value although there is a reference, or a row in the file."""
    without_reference: int
    """Samples without a reference answer, or without a row in the file."""
    abstained: int = field(default=0, metadata={MAY_BE_MISSING: True})
    """Samples that the model did not answer, because their risk was too high; labels of earlier runs have none."""
    table: YesNoTable | None
    """For yes/no judges."""
    differs_from_pope: int | None
    """For yes/no judges: how many values POPE's rule would make different, undecided ones included."""
    data: str
    """File name of the values, beside this record."""
    sha256: str
    """SHA-256 of that file."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When it was made: UTC, ISO 8601."""
    midsight_version: str = __version__
    """The midsight that made it."""


def validate_name(name: str) -> None:
    """Raises MidsightError for a name that cannot be a file name on every system."""
    if not NAME.fullmatch(name):
        raise MidsightError(
            Option("name", name), " is not a name; use up to 64 letters without accents, digits, _ and -."
        )


def write_label(run: Place, values: pa.Table, **facts: Any) -> LabelRecord:
    """Stores a label in the run folder `run`, in place of one of the same name.

    `values` are as in LABEL_SCHEMA, `facts` are fields of LabelRecord.

    A crash leaves the old label or the new one: the record, which names the file of values, is replaced last.
    Raises MidsightError for a name that cannot be stored, CommitError if the disk refuses.
    """
    name = facts["name"]
    validate_name(name)
    folder = run / ANNOTATIONS
    sink = pa.BufferOutputStream()
    pq.write_table(values.cast(LABEL_SCHEMA), sink, compression="zstd")
    data = sink.getvalue()
    digest = hashlib.sha256(memoryview(data)).hexdigest()
    record = LabelRecord(data=f"{name}.{digest[:16]}.parquet", sha256=digest, **facts)
    with reporting_disk_errors(folder, "written"):
        folder.mkdir(exist_ok=True)
        write_atomically(folder / record.data, data)
        write_sealed_json(folder / f"{name}.json", to_json(record), indent=2)
        for old in folder.glob(f"{name}.*.parquet"):
            if old.name != record.data:
                old.unlink(missing_ok=True)
    return record


def label_names(run: Place) -> list[str]:
    """The names of the labels in the run folder `run`, sorted."""
    return sorted(path.stem for path in (run / ANNOTATIONS).glob("*.json") if NAME.fullmatch(path.stem))


def read_label_record(run: Place, run_id: str, name: str) -> LabelRecord:
    """The record of the label `name`; raises MidsightError if there is none, DamagedRunError if it is damaged."""
    path = run / ANNOTATIONS / f"{name}.json"
    if not NAME.fullmatch(name) or not path.is_file():
        there = ", ".join(label_names(run))
        raise MidsightError(
            f"{run} has no label {name!r}; "
            + (f"it has {there}." if there else "make it with `midsight label`, or with run.label in Python.")
        )
    try:
        record = from_json(LabelRecord, open_seal(path, read_json(path)))
    except (DamagedRunError, WrongJsonError) as error:
        raise _damaged(path, name) from error
    if record.run_id != run_id or record.name != name:
        raise DamagedRunError(f"{path} belongs to another run or has another name; make the label {name} again.")
    return record


def read_label(run: Place, run_id: str, name: str) -> pa.Table:
    """The values of the label `name`, as in LABEL_SCHEMA; raises MidsightError, or DamagedRunError."""
    record = read_label_record(run, run_id, name)
    path = run / ANNOTATIONS / record.data
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, name) from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise _damaged(path, name)
    return pq.read_table(pa.BufferReader(data))


def damaged_labels(run: Place, run_id: str) -> Iterator[tuple[str, str]]:
    """File within the run folder, and the problem, of each label that is damaged or of another run."""
    for name in label_names(run):
        try:
            read_label(run, run_id, name)
        except DamagedRunError as error:
            yield f"{ANNOTATIONS}/{name}.json", str(error)


def _damaged(path: Place, name: str) -> DamagedRunError:
    return DamagedRunError(f"{path} is damaged or missing; make the label {name} again.")

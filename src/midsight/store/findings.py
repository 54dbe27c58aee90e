"""The folders of findings in a run, each replaced as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from midsight.buckets.path import BucketPath, Place
from midsight.errors import DamagedRunError, MidsightError
from midsight.store.annotations import NAME, validate_name
from midsight.store.files import (
    flush_folder,
    open_seal,
    read_json,
    reporting_disk_errors,
    temporary_name,
    write_atomically,
    write_sealed_json,
)

FINDINGS = "findings"
RESULT = "result.json"
PREDICTIONS = "predictions.parquet"


def finding_folder(run: Place, name: str) -> Place:
    """The folder of the finding `name` in the run folder `run`."""
    return run / FINDINGS / name


def finding_names(run: Place) -> list[str]:
    """The names of the findings in the run folder `run`, sorted."""
    return sorted(path.parent.name for path in (run / FINDINGS).glob(f"*/{RESULT}") if NAME.fullmatch(path.parent.name))


def write_finding(run: Place, name: str, result: Mapping[str, Any], files: Mapping[str, bytes]) -> Place:
    """Writes a finding in place of one of the same name, and returns its folder.

    A crash leaves the old one, the new one, or none; never a mixture. Raises MidsightError for a name that cannot be
    stored, CommitError if the disk refuses.
    """
    validate_name(name)
    folder = finding_folder(run, name)
    if isinstance(folder, BucketPath):
        _write_to_bucket(folder, result, files)
        return folder
    aside, old = (folder.with_name(temporary_name(f"{name}{suffix}")) for suffix in ("", ".old"))
    with reporting_disk_errors(folder, "written"):
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir(parents=True)
        for path, data in files.items():
            target = aside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, data)
        write_sealed_json(aside / RESULT, result, indent=2)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        flush_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _write_to_bucket(folder: BucketPath, result: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """A finding is there while its result is, so that goes first and comes last."""
    (folder / RESULT).unlink()
    for file in [*folder.rglob()]:
        file.unlink()
    for path, data in files.items():
        (folder / path).write_bytes(data)
    write_sealed_json(folder / RESULT, result, indent=2)


def read_result(run: Place, run_id: str, name: str) -> dict[str, Any]:
    """The result.json of a finding, without its seal; raises MidsightError, or DamagedRunError."""
    path = finding_folder(run, name) / RESULT
    if not NAME.fullmatch(name) or not path.is_file():
        there = ", ".join(finding_names(run))
        raise MidsightError(
            f"{run} has no finding {name!r}; " + (f"it has {there}." if there else "make it with `midsight probe`.")
        )
    try:
        result = open_seal(path, read_json(path))
    except DamagedRunError as error:
        raise DamagedRunError(f"{path} is damaged; make the finding {name} again.") from error
    if result.get("run_id") != run_id:
        raise DamagedRunError(f"{path} belongs to another run; make the finding {name} again.")
    return result


def read_predictions(run: Place, name: str) -> pa.Table | None:
    """What a finding's probe and the model's confidence predicted of each tested sample; None in older findings.

    Raises DamagedRunError if stored bytes are not those that were written.
    """
    path = finding_folder(run, name) / PREDICTIONS
    if not path.is_file():
        return None
    try:
        return pq.read_table(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DamagedRunError(f"{path} is damaged; make the finding {name} again.") from error


def damaged_findings(run: Place, run_id: str) -> Iterator[tuple[str, str]]:
    """File within the run folder, and the problem, of each file of a finding that is damaged or of another run."""
    for name in finding_names(run):
        checks = {RESULT: partial(read_result, run, run_id, name), PREDICTIONS: partial(read_predictions, run, name)}
        for file, read in checks.items():
            try:
                read()
            except DamagedRunError as error:
                yield f"{FINDINGS}/{name}/{file}", str(error)

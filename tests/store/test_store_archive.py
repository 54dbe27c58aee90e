"""Runs that were written earlier and are kept in the repository can still be read and resumed.

Until the first release the archive of format 1 may be written again:
PYTHONPATH=tests python tests/store/test_store_archive.py
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from midsight.records import Record
from midsight.store import RunWriter, open_run
from midsight.store.compact import compact
from midsight.store.verify import verify_run
from support.made_up import (
    WIDTHS,
    content_of,
    files_of,
    make_failure,
    make_model_spec,
    make_record,
    make_request,
    make_spec,
)

ARCHIVES = Path(__file__).parent / "archive"
SPEC = make_spec(
    created="2025-01-01T00:00:00+00:00",
    # what run.json did not have yet
    request=make_request(plain_greedy=True),
    model=make_model_spec(
        answer_settings="{}",
        notes=(),
        family_file=None,
        family_sha256=None,
        base=None,
        base_revision=None,
        base_fingerprint=None,
        adapter_fingerprint=None,
        adapters=(),
    ),
)
ROWS = 8


def archived_record(index: int) -> Record:
    """A record whose vectors do not depend on numpy's random numbers."""
    vectors = {name: np.arange(width, dtype=np.float32) / 3 - index for name, width in WIDTHS.items()}
    return make_record(index, vectors=vectors)


def write_archive(path: Path) -> None:
    """Two shards; the commits of one are merged. One sample failed and one failed before it succeeded."""
    with RunWriter(path, SPEC, shard=(0, 2)) as writer:
        writer.add(archived_record(6))
        writer.fail(make_failure(2))
        writer.commit()
        writer.fail(make_failure(8))
        writer.add(archived_record(0))
        writer.commit()
        writer.add(archived_record(4))
    compact(path)
    with RunWriter(path, SPEC, shard=(0, 2), retry_failed=True) as writer:
        writer.add(archived_record(2))
    with RunWriter(path, SPEC, shard=(1, 2)) as writer:
        for index in (7, 1, 3, 5):
            writer.add(archived_record(index))
    shutil.rmtree(path / "locks")


@pytest.mark.parametrize("archive", ["format-1"])
def test_an_archived_run_reads_as_it_was_written(archive, tmp_path):
    path = ARCHIVES / archive
    write_archive(tmp_path / "new")
    assert content_of(path) == content_of(tmp_path / "new")
    run = open_run(path)
    assert run.spec == SPEC
    assert [commit.replaces for commit in run.commits] == [(0, 1, 2), (), ()]
    assert run.sample_ids() == [f"s{i}" for i in range(ROWS)]
    assert run.failures() == [make_failure(8)]
    for name in WIDTHS:
        expected = np.stack([archived_record(i).vectors[name] for i in range(ROWS)])
        assert run.matrix(name).tobytes() == expected.tobytes()
    report = verify_run(path)
    assert (report.findings, report.rows, report.failures) == ((), ROWS, 1)


@pytest.mark.parametrize("archive", ["format-1"])
def test_an_archived_run_is_resumed(archive, tmp_path):
    path = shutil.copytree(ARCHIVES / archive, tmp_path / "run")
    with RunWriter(path, SPEC, shard=(1, 2)) as writer:
        assert writer.done == {f"s{i}" for i in range(ROWS + 1)}
        writer.add(archived_record(9))
    assert len(open_run(path)) == ROWS + 1
    assert len(files_of(path, ".json")) == 4
    assert verify_run(path).sound


def test_input_columns_keep_the_names_under_which_they_were_stored(tmp_path):
    """The archived run was written when only a name that midsight uses, in the same case, was renamed."""
    path = shutil.copytree(ARCHIVES / "format-1-same-names", tmp_path / "run")
    run = open_run(path)
    stored_as = {name: name for name in ("Answer", "Year", "year", "", "a\0b", "plain")} | {
        "input.answer": "input.input.answer"
    }
    assert run.spec.stored_as == stored_as
    for name, column in stored_as.items():
        assert run.table()[column].to_pylist() == [f"{name}-{i}" for i in range(3)]
    assert verify_run(path).sound
    schema = run.table().schema
    with RunWriter(path, replace(run.spec, stored_as={})) as writer:  # the names of today
        writer.add(make_record(3, extras={name: f"{name}-3" for name in stored_as}))
    compact(path)
    assert open_run(path).table()["Answer"].to_pylist() == [f"Answer-{i}" for i in range(4)]
    assert open_run(path).table().schema.equals(schema)


if __name__ == "__main__":
    shutil.rmtree(ARCHIVES / "format-1", ignore_errors=True)
    write_archive(ARCHIVES / "format-1")

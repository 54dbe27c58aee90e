"""Runs, tables and images at gs:// and az:// addresses, against stubs of the two services on loopback."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from midsight.buckets import connect
from midsight.buckets.path import BucketPath, to_place
from midsight.buckets.trial import require_conditional_writes
from midsight.errors import MidsightError, RefusedError, RunError, SampleError, UnreachableError
from midsight.samples.images import decode_image
from midsight.samples.open import open_dataset
from midsight.samples.options import DatasetOptions
from midsight.samples.tables import Dataset
from midsight.store import RunWriter, lease
from midsight.store.compact import compact
from midsight.store.reader import open_run
from midsight.store.verify import verify_run
from support.made_tables import ENCODED
from support.made_up import QUERY_1, make_record, make_spec, write_run
from support.other_stores import CONTAINER, TOKEN, Shelf, serving_store

pytestmark = pytest.mark.slow


@pytest.fixture(params=["gs", "az"])
def shelf(request, monkeypatch) -> Iterator[tuple[Shelf, BucketPath]]:
    with serving_store(request.param) as (shelf, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(connect, "RETRIES", 1)
        connect.open_store.cache_clear()
        root = to_place(f"{request.param}://{CONTAINER}")
        assert isinstance(root, BucketPath)
        yield shelf, root
    connect.open_store.cache_clear()


def test_objects_are_written_read_listed_and_deleted(shelf):
    store, root = shelf
    names = ["a.txt", "b/c d.txt", "b/ü.txt", "b/d/e.txt", "what?#%20*.txt"]
    for name in names:
        (root / name).write_bytes(name.encode())
    assert sorted(str(file.relative_to(root)) for file in root.rglob()) == sorted(names)
    assert sorted(file.name for file in (root / "b").iterdir()) == ["c d.txt", "d", "ü.txt"]
    assert sorted(file.name for file in (root / "b").files()) == ["c d.txt", "ü.txt"]
    assert [(file.name, file.is_file(), file.is_dir()) for file in sorted(root.glob("b/*.txt"))] == [
        ("c d.txt", True, False), ("ü.txt", True, False),
    ]  # fmt: skip
    for name in names:
        assert (root / name).read_bytes() == name.encode()
    assert (root / "a.txt").read_range(2, 4) == b"tx"
    assert (root / "a.txt").stat().st_size == 5
    assert (root / "b").is_dir()
    assert not (root / "a.txt").is_dir()
    (root / "a.txt").unlink()
    (root / "a.txt").unlink()
    assert not (root / "a.txt").exists()
    assert {"GET", "HEAD", "PUT", "DELETE"} <= {method for method, _ in store.requests}


def test_conditions_hold_and_a_store_without_them_is_refused(shelf):
    store, root = shelf
    first = (root / "a").create(b"1")
    with pytest.raises(FileExistsError):
        (root / "a").create(b"2")
    second = (root / "a").replace_if(b"2", first)
    with pytest.raises(FileExistsError):
        (root / "a").replace_if(b"3", first)
    (root / "a").replace_if(b"3", second)
    assert (root / "a").read_bytes() == b"3"
    require_conditional_writes(root / "locks")
    assert [*root.rglob()] == [root / "a"]
    store.ignores_conditions = True
    with pytest.raises(RunError, match=f"{root} overwrites objects where it is told not to"):
        require_conditional_writes(root / "locks")


def test_a_run_is_written_compacted_verified_and_read(shelf, tmp_path, monkeypatch, no_waiting):
    monkeypatch.setattr(lease, "LEASE_S", 0.6)
    store, root = shelf
    out, spec = root / "runs" / "first", make_spec()
    for start in (0, 4):
        with RunWriter(out, spec, commit_seconds=3600) as writer:
            with pytest.raises(RunError, match="is being written by"):
                RunWriter(out, spec, commit_seconds=3600).__enter__()
            for row in range(start, start + 4):
                writer.add(make_record(row))
                writer.commit()
    write_run(tmp_path / "run", [make_record(row) for row in range(8)], spec)
    for _ in range(2):
        there, here = open_run(str(out)), open_run(tmp_path / "run")
        assert there.sample_ids() == here.sample_ids()
        assert np.array_equal(there.matrix(QUERY_1), here.matrix(QUERY_1))
        assert verify_run(out).findings == ()
        compact(out)
    assert len([name for name in store.objects if name.endswith(".parquet")]) == 1


def test_tables_and_images_are_read(shelf):
    store, root = shelf
    rows = [{"image": f"images/{n}.png", "question": f"What is {n}?"} for n in range(5)]
    for number, rows_of_shard in enumerate((rows[:3], rows[3:])):
        lines = "".join(json.dumps(row) + "\n" for row in rows_of_shard)
        (root / "tables" / f"{number}.jsonl").write_bytes(lines.encode())
    for number, png in enumerate(ENCODED):
        (root / "images" / f"{number}.png").write_bytes(png)
    dataset = open_dataset(f"{root}/tables/*.jsonl", DatasetOptions(images=str(root)))
    assert isinstance(dataset, Dataset)
    assert [decode_image(sample.images[0]).width for sample in dataset.samples] == [12, 16, 20, 24, 28]
    again = open_dataset(f"{root}/tables", DatasetOptions(images=str(root)))
    assert again.sha256 == dataset.sha256
    store.put("tables/1.jsonl", store.objects["tables/0.jsonl"][0])
    assert open_dataset(f"{root}/tables", DatasetOptions(images=str(root))).sha256 != dataset.sha256


def test_what_a_store_denies_is_the_samples_and_what_it_does_not_answer_is_not(shelf, monkeypatch):
    store, root = shelf
    store.put("a.png", ENCODED[0])
    store.refuses = lambda method, name: 403 if name == "a.png" else None
    with pytest.raises(SampleError, match=f"The image {root}/a.png cannot be read: the store denies access to it."):
        decode_image(root / "a.png")
    with pytest.raises(RefusedError, match="the store denies access to it; see to what your credentials may do there"):
        (root / "a.png").read_bytes()
    store.refuses = lambda method, name: 503
    with pytest.raises(UnreachableError, match="cannot be reached: "):
        decode_image(root / "a.png")
    with pytest.raises(MidsightError) as caught:
        open_dataset(f"{root}/a.jsonl")
    assert f"{root}" in str(caught.value)
    assert TOKEN not in str(caught.value)

"""Runs of many parts in a bucket: requests are counted, against a store in memory on loopback."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midsight.buckets import connect
from midsight.buckets.path import BucketPath, to_place
from midsight.store import RunWriter, commits, index, parts
from midsight.store.compact import compact
from midsight.store.files import commit_stem, sealed_json
from midsight.store.index import extend_index
from midsight.store.lease import FREE
from midsight.store.reader import open_run
from midsight.store.verify import verify_run
from support.buckets import BUCKET, ENVIRONMENT, Door, serving_stub
from support.made_up import QUERY_0, QUERY_1, VISION, make_record, make_spec, write_run
from support.stub_store import StubStore

pytestmark = pytest.mark.slow
PARTS = 40
MANY = 3_000


@dataclass(frozen=True)
class Bucket:
    """A store, and a run in it."""

    address: str
    door: Door
    store: StubStore

    @property
    def place(self) -> BucketPath:
        """The run."""
        place = to_place(self.address)
        assert isinstance(place, BucketPath)
        return place

    def requests(self) -> list[tuple[str, str]]:
        """Method and key of all requests since the last call."""
        found = [(request.method, request.key.removeprefix("run/")) for request in self.door.requests]
        self.door.requests.clear()
        return found


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with serving_stub() as (endpoint, door, store):
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        connect.open_store.cache_clear()
        yield Bucket(f"s3://{BUCKET}/run", door, store)
        connect.open_store.cache_clear()


def put(folder: Path, bucket: Bucket) -> None:
    """A copy of a run folder, as if it had been written there."""
    for file in folder.rglob("*"):
        if file.is_file() and file.parent.name != "locks":
            bucket.store.objects[f"run/{file.relative_to(folder)}"] = file.read_bytes()


@pytest.fixture(scope="module")
def run_of_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PARTS parts of two rows, which are not in the order of the dataset."""
    folder = tmp_path_factory.mktemp("parts") / "run"
    with RunWriter(folder, make_spec(), commit_seconds=3600) as writer:
        for row in reversed(range(PARTS)):
            writer.add(make_record(row))
            writer.add(make_record(PARTS + row))
            writer.commit()
    return folder


def multiply_the_commit(bucket: Bucket, numbers: range) -> None:
    """Commits with these numbers that are like the first one, which nobody reads the rows of."""
    part, record = (bucket.store.objects[f"run/parts/0-of-1-000000{suffix}"] for suffix in (".parquet", ".json"))
    body: dict[str, Any] = json.loads(record)
    del body["seal"]
    for number in numbers:
        name = commit_stem((0, 1), number)
        bucket.store.objects[f"run/parts/{name}.parquet"] = part
        bucket.store.objects[f"run/parts/{name}.json"] = sealed_json({**body, "name": name})


def test_opening_many_parts_takes_few_requests_and_reads_no_record(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", [make_record(0)])
    put(tmp_path / "run", bucket)
    multiply_the_commit(bucket, range(MANY))
    with monkeypatch.context() as here:  # from memory, because reading 3,000 records by requests takes seconds
        here.setattr(index, "read_all", lambda files: {file.name: bucket.store.objects[file.key] for file in files})
        extend_index(bucket.place)
    bucket.requests()
    with monkeypatch.context() as here:
        here.setattr(commits, "open_seal", lambda *_: pytest.fail("a record is read"))
        run = open_run(bucket.address)
    assert len(run.commits) == MANY
    requests = bucket.requests()
    pages = 2 * MANY / 1_000  # of the listing of parts and records
    assert requests.count(("GET", "?list")) == pages + 1
    assert len(requests) == pages + 1 + 3 + 2, requests  # three objects of the index, and run.json twice
    multiply_the_commit(bucket, range(MANY, MANY + 50))
    assert len(open_run(bucket.address).commits) == MANY + 50
    assert len(bucket.requests()) == len(requests) + 1 + 50


def test_the_index_is_merged_and_forgets_what_is_gone(
    bucket: Bucket, run_of_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "INDEX_RECORDS", 16)
    put(run_of_parts, bucket)
    objects = bucket.store.objects
    later = {
        name: objects.pop(name)
        for name in sorted(objects)
        if "/parts/" in name and int(name[-14:].split(".")[0][-2:]) > 20
    }
    extend_index(bucket.place)
    objects |= later
    extend_index(bucket.place)
    extend_index(bucket.place)
    assert sum("/index/" in name for name in objects) == 3
    bucket.requests()
    assert open_run(bucket.address).commits == open_run(run_of_parts).commits
    assert not [key for _, key in bucket.requests() if "parts/" in key]
    indexed = {name: content for name, content in objects.items() if "/index/" in name}
    objects |= {name: content.replace(b'"rows":2', b'"rows":3') for name, content in indexed.items()}
    assert open_run(bucket.address).commits == open_run(run_of_parts).commits
    objects |= indexed
    bucket.requests()
    for name in [*later]:
        del objects[name]
    extend_index(bucket.place)
    assert sum("/index/" in name for name in objects) == 2
    assert len(open_run(bucket.address).commits) == PARTS - len(later) // 2
    assert not [key for _, key in bucket.requests() if "parts/" in key]


def test_what_writers_add_to_the_index_at_the_same_time_is_merged_too(
    bucket: Bucket, run_of_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "INDEX_RECORDS", 16)
    put(run_of_parts, bucket)
    objects = bucket.store.objects
    first = {name: objects.pop(name) for name in sorted(objects) if "/parts/0-of-1-000000." in name}
    extend_index(bucket.place)
    of_one = {name: objects.pop(name) for name in sorted(objects) if "/index/" in name}
    objects |= first
    extend_index(bucket.place)
    objects |= of_one
    assert sum("/index/" in name for name in objects) == 6
    assert open_run(bucket.address).commits == open_run(run_of_parts).commits
    extend_index(bucket.place)
    assert sum("/index/" in name for name in objects) == 3
    bucket.requests()
    assert open_run(bucket.address).commits == open_run(run_of_parts).commits
    assert not [key for _, key in bucket.requests() if "parts/" in key]


def test_locks_of_other_shards_that_nobody_holds_are_read_at_once_and_not_taken(
    bucket: Bucket, run_of_parts: Path
) -> None:
    put(run_of_parts, bucket)
    bucket.store.objects |= {f"run/locks/{number}-of-40.lock": FREE for number in range(40)}
    bucket.requests()
    bucket.door.latency_s = 0.02
    with RunWriter(bucket.address, make_spec()):
        pass
    about = [method for method, key in bucket.requests() if "-of-40" in key]
    assert about == ["GET"] * 40
    assert bucket.door.most_at_once > 8


def test_each_small_part_is_read_once_for_all_columns(bucket: Bucket, run_of_parts: Path) -> None:
    put(run_of_parts, bucket)
    run, local = open_run(bucket.address), open_run(run_of_parts)
    bucket.requests()
    bucket.door.latency_s = 0.02
    assert np.array_equal(run.matrix(VISION), local.matrix(VISION))
    assert sorted(bucket.requests()) == [("GET", f"parts/{commit.name}.parquet") for commit in local.commits]
    assert bucket.door.most_at_once > 8
    assert np.array_equal(run.matrices("query_token"), local.matrices("query_token"))
    assert run.table().equals(local.table())
    assert not bucket.requests()


def test_of_a_large_part_the_footer_is_read_once_and_a_column_by_one_request(
    bucket: Bucket, run_of_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SMALL_PART_BYTES", 0)
    put(run_of_parts, bucket)
    run, local = open_run(bucket.address), open_run(run_of_parts)
    bucket.requests()
    for column, requests in ((QUERY_0, 3), (QUERY_1, 1)):  # at first also the footer and the order of the rows
        assert np.array_equal(run.matrix(column), local.matrix(column))
        assert len(bucket.requests()) == requests * PARTS
    monkeypatch.setattr(parts, "KEPT_BYTES", 0)
    forgetful = open_run(bucket.address)
    bucket.requests()
    assert np.array_equal(forgetful.matrix(QUERY_0), local.matrix(QUERY_0))
    assert len(bucket.requests()) == 4 * PARTS


def test_compact_merges_the_parts_and_then_one_column_takes_few_requests(bucket: Bucket, run_of_parts: Path) -> None:
    put(run_of_parts, bucket)
    bucket.requests()
    bucket.door.latency_s = 0.02
    done = compact(bucket.address)
    assert (done.commits_before, done.commits_after) == (PARTS, 1)
    requests = bucket.requests()
    assert bucket.door.most_at_once > 8
    assert sum(method == "GET" and key.endswith(".parquet") for method, key in requests) == PARTS + 1  # and the new one
    bucket.door.latency_s = 0
    run, local = open_run(bucket.address), open_run(run_of_parts)
    assert np.array_equal(run.matrix(VISION), local.matrix(VISION))
    assert run.table().equals(local.table())
    assert len(bucket.requests()) <= 5 + 4
    assert verify_run(bucket.address).sound
    assert sum("/parts/" in name for name in bucket.store.objects) == 2

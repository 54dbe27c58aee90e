"""Times opening a run of many parts in a bucket, and reading one column of it, with simulated latency per request.

    PYTHONPATH=tests python scripts/time_bucket.py [PARTS ...]

The store is in the memory of this process, and another one reads: CPU time is of the one that reads, with its threads.
"""

import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from midsight.buckets.path import to_place
from midsight.store import index
from midsight.store.commits import Commit, write_commit
from midsight.store.parts import digest_part, encode_part
from midsight.store.reader import open_run
from midsight.store.schema import records_to_table
from midsight.store.spec import write_spec
from support.buckets import BUCKET, ENVIRONMENT, Door, serving_stub
from support.made_up import VISION, make_record, make_spec
from support.stub_store import StubStore

LATENCY_S = 0.05


def write_parts(store: StubStore, count: int) -> None:
    """A run of `count` parts of one row each, put into the store's memory, because that is faster than by requests."""
    spec, shard = make_spec(), (0, 1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "parts").mkdir()
        write_spec(folder, spec)
        for row in range(count):
            part = encode_part(records_to_table([make_record(row, spec)], spec.columns))
            commit = Commit(shard, row, digest_part(part), ())
            with patch.object(os, "fsync"):
                write_commit(folder, commit, spec.run_id)
            store.objects[f"{count}/parts/{commit.name}.parquet"] = part.to_pybytes()
        for file in folder.rglob("*.json"):
            store.objects[f"{count}/{file.relative_to(folder)}"] = file.read_bytes()


def time_parts(address: str, door: Door, count: int) -> str:
    """A row of the table in docs/scaling.md."""
    here, there = get_context("spawn").Pipe()
    reader = get_context("spawn").Process(target=read, args=(address, count, there))
    door.latency_s = LATENCY_S
    reader.start()
    cells = [f"{count:,}"]
    for _ in range(3):
        here.recv()
        door.requests.clear()
        here.send(None)
        wall_s, cpu_s = here.recv()
        cells += [f"{len(door.requests):,}", f"{wall_s:.1f} s", f"{cpu_s:.1f} s"]
    reader.join()
    door.latency_s = 0.0
    return f"| {' | '.join(cells)} |"


def read(address: str, count: int, pipe: Any) -> None:
    """Opens the run, reads one column, and one more, each when it is told to; says how long each took."""
    run = open_run(f"{address.rpartition('/')[0]}/1")  # a first one, which imports and connects
    run.matrix(VISION)

    def opening() -> None:
        nonlocal run
        run = open_run(address)
        if len(run) != count:
            raise SystemExit(f"{len(run)} rows of {count}")

    steps: list[Callable[[], Any]] = [opening, lambda: run.matrix(VISION), lambda: run.matrix(run.vector_columns[-1])]
    for step in steps:
        pipe.send(None)
        pipe.recv()
        wall, cpu = time.monotonic(), time.process_time()
        step()
        pipe.send((time.monotonic() - wall, time.process_time() - cpu))


def main() -> None:
    """Prints a row for each number of parts: requests, time and CPU time to open, to read a column, and another."""
    with serving_stub() as (endpoint, door, store):
        os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=endpoint)
        for count in [1, *([int(argument) for argument in sys.argv[1:]] or [10, 100, 1_000, 10_000])]:
            address = f"s3://{BUCKET}/{count}"
            write_parts(store, count)
            with patch.object(index, "read_all", lambda files: {file.name: store.objects[file.key] for file in files}):
                index.extend_index(to_place(address))
            if count > 1:
                print(time_parts(address, door, count), flush=True)


if __name__ == "__main__":
    main()

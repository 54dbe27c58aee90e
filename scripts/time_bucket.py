"""Times opening a run of many parts in a bucket, and reading one column of it, with simulated latency per request.

    PYTHONPATH=tests python scripts/time_bucket.py [PARTS ...]

The bucket is moto's S3 on loopback in this process, which answers slowly by itself: its own time is in the figures.
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from moto.s3.models import s3_backends

from midsight.buckets.path import to_place
from midsight.store import RunWriter
from midsight.store.index import extend_index
from midsight.store.reader import open_run
from support.buckets import BUCKET, ENVIRONMENT, Door, serving_bucket
from support.made_up import VISION, make_record, make_spec

LATENCY_S = 0.05


def write_parts(address: str, count: int) -> None:
    """A run of `count` parts of one row each, put into moto's memory, because that is faster than by requests."""
    bucket = s3_backends["123456789012"]["aws"]
    with TemporaryDirectory() as folder:
        with RunWriter(folder, make_spec(), commit_seconds=3600) as writer:
            for row in range(count):
                writer.add(make_record(row))
                writer.commit()
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file() and file.parent.name != "locks":
                name = file.relative_to(folder).as_posix()
                bucket.put_object(BUCKET, f"{address.rpartition('/')[2]}/{name}", file.read_bytes())


def time_parts(address: str, door: Door, count: int) -> str:
    """A row of the table in docs/scaling.md."""
    door.latency_s = LATENCY_S
    door.requests.clear()
    began = time.monotonic()
    run = open_run(address)
    opening, requests = time.monotonic() - began, len(door.requests)
    if len(run) != count:
        raise SystemExit(f"{len(run)} rows of {count}")
    door.requests.clear()
    began = time.monotonic()
    run.matrix(VISION)
    reading = time.monotonic() - began
    door.latency_s = 0.0
    return f"| {count:,} | {requests:,} | {opening:.1f} s | {len(door.requests):,} | {reading:.1f} s |"


def main() -> None:
    """Prints a row for each number of parts."""
    with serving_bucket() as (endpoint, door):
        os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=endpoint)
        for count in [int(argument) for argument in sys.argv[1:]] or [10, 100, 1_000, 10_000]:
            address = f"s3://{BUCKET}/{count}"
            write_parts(address, count)
            extend_index(to_place(address), (0, 1))
            print(time_parts(address, door, count), flush=True)


if __name__ == "__main__":
    main()

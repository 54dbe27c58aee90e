"""A bucket on loopback that commands reach. Started processes import this, so it imports little."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from faults.command import start
from midsight.buckets import connect
from midsight.buckets.path import BucketPath
from midsight.store import commits, lease, lock
from support.buckets import BUCKET, ENVIRONMENT, Door, serving_bucket, serving_stub

if TYPE_CHECKING:
    from faults.made_up_model import Behaviour

LEASE_S, REQUEST_S, RETRIES = 0.9, 1.5, 1
"""In place of half a minute, five minutes and six."""


@dataclass(frozen=True)
class Bucket:
    """A bucket on loopback."""

    endpoint: str
    """Its address."""
    door: Door
    """What is between clients and the store."""

    def start(
        self,
        call: list[Any],
        run: BucketPath,
        output: Path,
        *,
        behaviour: Behaviour | None = None,
        clock_s: int = 0,
    ) -> BaseProcess:
        """Starts `midsight extract` into the run; without a `behaviour` the model is a real one."""
        return start(
            [*call, "--out", run],
            output,
            made_up=behaviour is not None,
            behaviour=behaviour,
            prepare=partial(reach_bucket, self.endpoint, clock_s),
        )

    def writes(self, run: BucketPath, folder: str = "") -> int:
        """Number of objects that were put below a folder of the run."""
        return self.door.counted("PUT", f"{run.key}/{folder}")


@contextmanager
def bucket(*, of_moto: bool = False) -> Iterator[Bucket]:
    """A bucket that this process and its commands can reach: of a stub, which takes less CPU time, or of moto."""
    with warnings.catch_warnings(), mock.patch.dict(os.environ):
        warnings.simplefilter("ignore")  # moto warns of its own libraries
        with serving_bucket() if of_moto else serving_stub() as (endpoint, door, *_):
            os.environ.update({**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint})
            connect.open_store.cache_clear()
            yield Bucket(endpoint, door)
            connect.open_store.cache_clear()


def run_of(folder: Path) -> BucketPath:
    """The address of a new run."""
    return BucketPath(f"s3://{BUCKET}", f"runs/{folder.name}")


def reach_bucket(endpoint: str, clock_s: int) -> None:
    """Lets this process use the bucket, with short limits of time and a clock that is off by `clock_s` seconds."""
    os.environ.update({**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint})
    connect.RETRIES, connect.REQUEST_S = RETRIES, REQUEST_S
    lease.LEASE_S = lock.LEASE_S = LEASE_S

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=clock_s)

    commits.datetime = lock.datetime = Clock

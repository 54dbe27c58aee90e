"""Leases: the locks of a run in a bucket. A lease is an object that its holder renews; nobody compares clocks.

Whoever wants a lease that another process holds watches it. One that was not renewed for LEASE_S is taken over by a
write that the store accepts only if the object is still the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event, RLock, Thread
from typing import Any, Self

from midsight.buckets.path import BucketPath, Version
from midsight.errors import RunError, UnreachableError

LEASE_S = 30.0
"""How long a lease holds that is not renewed, in seconds by the clock of the process that watches it."""
RENEWALS = 3
"""How often a lease is renewed in that time."""
LOOKS = 60
"""How often a lease that another process holds is looked at in that time."""
FREE = b"{}\n"
"""The content of a lease that nobody holds."""


class Lease:
    """A lease that this process holds until `close`; a context manager."""

    def __init__(self, path: BucketPath, holder: Mapping[str, Any], version: Version, taken: float) -> None:
        """`taken` is when the write was begun that made the object's `version`."""
        self._path = path
        self._holder = holder
        self._version = version
        self._renewed, self._renewals = taken, 0
        self._lost = False
        self._writing = RLock()
        self._left = Event()
        self._renewing = Thread(target=self._renew_in_time, daemon=True, name="midsight-lease")
        self._renewing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_lost(self) -> bool:
        """Whether another process took it over, because it was not renewed in time."""
        with self._writing:
            if not self._lost and time.monotonic() - self._renewed > 2 * LEASE_S / RENEWALS:
                self._renew()
            return self._lost

    def close(self) -> None:
        """Give it back; without the network it ends LEASE_S later."""
        self._left.set()
        with self._writing, suppress(OSError, UnreachableError):
            if not self._lost:
                self._lost = True
                self._path.replace_if(FREE, self._version)

    def _renew_in_time(self) -> None:
        while not self._left.wait(LEASE_S / RENEWALS):
            with self._writing, suppress(OSError, UnreachableError):
                if not self._lost:
                    self._renew()

    def _renew(self) -> None:
        began = time.monotonic()
        self._renewals += 1
        try:
            self._version = self._path.replace_if(_content(self._holder, self._renewals), self._version)
        except (FileExistsError, FileNotFoundError):
            self._lost = True
        else:
            self._renewed = began


def take_lease(
    path: BucketPath, holder: Mapping[str, Any], *, wait_s: float, held: Callable[[bytes], RunError]
) -> Lease:
    """The lease at `path`, for this process.

    Args:
        path: The object.
        holder: Who takes it, as JSON; different for every call.
        wait_s: Maximum time to wait while it passes from one holder to another.
        held: Makes the error from what its holder has written.

    Returns:
        The lease, which is renewed until it is closed.

    Raises:
        RunError: Its holder renewed it while this call watched.
        UnreachableError: The store does not answer.
    """
    began = time.monotonic()
    seen: Version | None = None
    since, of = began, None
    while True:
        now = time.monotonic()
        try:
            content, version = path.read_with_version()
        except FileNotFoundError:
            content, version = FREE, None
        if content == FREE or (version == seen and now - since > LEASE_S):
            with suppress(FileExistsError, FileNotFoundError):  # somebody else was faster
                mine = _content(holder, 0)
                return Lease(path, holder, path.replace_if(mine, version) if version else path.create(mine), now)
        if version != seen:
            renewed = of is not None and of == _token(content)
            if renewed or now - began > wait_s + LEASE_S:
                raise held(content)
            seen, since, of = version, now, _token(content)
        time.sleep(LEASE_S / LOOKS)


def _content(holder: Mapping[str, Any], renewals: int) -> bytes:
    return json.dumps({**holder, "renewals": renewals, "seconds": LEASE_S}).encode()


def _token(content: bytes) -> str | None:
    """What tells one holder from another in a lease's content; None if it cannot be read."""
    with suppress(ValueError, RecursionError):
        holder: Any = json.loads(content)
        return holder.get("lock") if isinstance(holder, dict) else None
    return None

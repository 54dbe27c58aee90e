"""What a process is working on, kept on disk: a start learns from it what its forerunners died of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from midsight.errors import BrokenOffError
from midsight.store.layout import LOCKS, Shard, parse_shard_name, reporting_disk_errors, shard_name, write_atomically

DEADLY = 2
"""Deaths after which a sample is no longer tried."""


class Attempts:
    """The samples that one shard of the run folder `path` has in work. The shard's lock must be held.

    A process that dies leaves its samples behind; which of a batch killed it is not known, so each of
    them is suspected until it gets through. Raises CommitError when the disk refuses.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        self._file = path / LOCKS / f"{shard_name(shard)}.attempts"
        self._deaths: dict[str, int] = {}
        self._in_work: Counter[str] = Counter()
        self._one_at_a_time = Lock()
        for file in (path / LOCKS).glob("*.attempts"):
            owner = parse_shard_name(file.stem)
            # Processes of the other shards of this cut may be alive; those of another cut are not.
            if owner is not None and (owner == shard or owner[1] != shard[1]):
                for sample_id, deaths in _read(file).items():
                    self._deaths[sample_id] = max(deaths, self._deaths.get(sample_id, 0))

    def deaths(self, sample_id: str) -> int:
        """How many processes died while they worked on the sample and had not got it through."""
        return self._deaths.get(sample_id, 0)

    @contextmanager
    def working_on(self, sample_ids: Sequence[str]) -> Iterator[None]:
        """Holds the samples to be in work until the block ends, with an error or without; threads may call it.

        A device that breaks off counts as a death: this process can do no more.
        """
        self._note(started=sample_ids)
        try:
            yield
        except BrokenOffError:
            raise
        except BaseException:
            self._note(ended=sample_ids)
            raise
        self._note(ended=sample_ids)

    def clear(self, sample_ids: Iterable[str]) -> None:
        """Forgets deaths: the samples were got through, or are recorded as failed."""
        known = [sample_id for sample_id in sample_ids if sample_id in self._deaths]
        for sample_id in known:
            del self._deaths[sample_id]
        if known:
            self._note()

    def _note(self, *, started: Sequence[str] = (), ended: Sequence[str] = ()) -> None:
        with self._one_at_a_time, reporting_disk_errors(self._file, "written"):
            self._in_work.update(started)
            self._in_work.subtract(ended)
            self._in_work = +self._in_work
            # A process that dies takes nothing along that was written, flushed to the disk or not.
            write_atomically(
                self._file, json.dumps({"deaths": self._deaths, "in work": list(self._in_work)}).encode(), flush=False
            )


def _read(file: Path) -> dict[str, int]:
    """Deaths by sample, those in work among them; a file that cannot be read tells of none."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = json.loads(file.read_bytes())
        deaths = {str(sample_id): int(count) for sample_id, count in content["deaths"].items()}
        return deaths | {str(sample_id): deaths.get(str(sample_id), 0) + 1 for sample_id in content["in work"]}
    return {}

"""The samples in progress, kept on disk, so that the next process knows which ones killed earlier processes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from midsight.errors import BrokenOffError
from midsight.store.files import LOCKS, Shard, parse_shard_name, reporting_disk_errors, shard_name, write_atomically

DEADLY = 2
"""Number of deaths after which a sample is no longer tried."""


class Attempts:
    """The samples that one shard of the run folder `path` has in progress. The shard's lock must be held.

    A process that dies leaves its samples in the file. Which one of a batch killed it is unknown, so
    each counts a death until it succeeds. Raises CommitError if the disk refuses.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        self._file = path / LOCKS / f"{shard_name(shard)}.attempts"
        self._deaths: dict[str, int] = {}
        self._in_progress: Counter[str] = Counter()
        self._writing = Lock()
        for file in (path / LOCKS).glob("*.attempts"):
            owner = parse_shard_name(file.stem)
            # Processes that write other shards of the same N may be alive; those of another N are not.
            if owner is not None and (owner == shard or owner[1] != shard[1]):
                for sample_id, deaths in _read(file).items():
                    self._deaths[sample_id] = max(deaths, self._deaths.get(sample_id, 0))

    def deaths(self, sample_id: str) -> int:
        """How many processes died while the sample was in progress, since it last succeeded."""
        return self._deaths.get(sample_id, 0)

    @contextmanager
    def working_on(self, sample_ids: Sequence[str]) -> Iterator[None]:
        """Keep the samples in progress until the block ends, also with an error; threads may call it.

        A lost device counts as a death, because this process cannot continue.
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
        """Forget the deaths of samples that succeeded or are recorded as failed."""
        known = [sample_id for sample_id in sample_ids if sample_id in self._deaths]
        for sample_id in known:
            del self._deaths[sample_id]
        if known:
            self._note()

    def _note(self, *, started: Sequence[str] = (), ended: Sequence[str] = ()) -> None:
        with self._writing, reporting_disk_errors(self._file, "written"):
            self._in_progress.update(started)
            self._in_progress.subtract(ended)
            self._in_progress = +self._in_progress
            # A file survives the death of the process that wrote it, even if it is not flushed to the disk.
            write_atomically(
                self._file,
                json.dumps({"deaths": self._deaths, "in_progress": list(self._in_progress)}).encode(),
                flush=False,
            )


def _read(file: Path) -> dict[str, int]:
    """Deaths by sample, with one more for each in progress; empty if the file cannot be read."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = json.loads(file.read_bytes())
        deaths = {str(sample_id): int(count) for sample_id, count in content["deaths"].items()}
        return deaths | {str(sample_id): deaths.get(str(sample_id), 0) + 1 for sample_id in content["in_progress"]}
    return {}

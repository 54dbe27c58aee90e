"""What a process is working on, kept on disk: a start learns from it what its forerunners died of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

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
        """Holds the samples to be in work until the block ends, with an error or without.

        A device that breaks off counts as a death: this process can do no more.
        """
        self._write(sample_ids)
        try:
            yield
        except BrokenOffError:
            raise
        except BaseException:
            self._write()
            raise
        self.clear(sample_ids)

    def clear(self, sample_ids: Iterable[str]) -> None:
        """Forgets deaths: the samples were got through, or are recorded as failed."""
        for sample_id in sample_ids:
            self._deaths.pop(sample_id, None)
        self._write()

    def _write(self, in_work: Sequence[str] = ()) -> None:
        text = json.dumps({"deaths": self._deaths, "in work": list(in_work)})
        with reporting_disk_errors(self._file, "written"):
            write_atomically(self._file, text.encode())


def _read(file: Path) -> dict[str, int]:
    """Deaths by sample, those in work among them; a file that cannot be read tells of none."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        content = json.loads(file.read_bytes())
        deaths = {str(sample_id): int(count) for sample_id, count in content["deaths"].items()}
        return deaths | {str(sample_id): deaths.get(str(sample_id), 0) + 1 for sample_id in content["in work"]}
    return {}

"""The samples in work, kept on disk, so that after a death the next process knows which samples to suspect.

docs/reliability.md has the rules.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

from midsight.buckets.path import Place
from midsight.errors import BrokenOffError
from midsight.store.files import (
    LOCKS,
    Shard,
    parse_shard_name,
    rename,
    reporting_disk_errors,
    shard_name,
    write_atomically,
)
from midsight.store.typed_json import from_json, to_json

T = TypeVar("T")

ENOUGH_DEATHS = 3
"""Number of deaths while a sample was alone in work that set it aside."""


@dataclass(frozen=True, kw_only=True)
class _Working:
    """The content of a `.working` file, and of a `.seen` file: which samples a process has, or had, in work."""

    samples: tuple[str, ...] = ()
    """Their ids."""
    alone: bool = False
    """Whether nothing else was in work."""


@dataclass(frozen=True, kw_only=True)
class Suspicions:
    """The content of an `.attempts` file: the samples that were in work when processes died."""

    alone_deaths: Mapping[str, int] = field(default_factory=dict)
    """By id of every suspect: the number of deaths while it was alone in work."""
    tried_again: tuple[str, ...] = ()
    """Ids of the samples that were set aside and have been tried again since."""

    def once_more(self) -> set[str]:
        """Ids of the samples that were set aside and get one more try."""
        aside = {sample_id for sample_id, deaths in self.alone_deaths.items() if deaths >= ENOUGH_DEATHS}
        return aside - {*self.tried_again}


def working_path(path: Place, shard: Shard) -> Place:
    """The file of the run folder `path` that exists while a process has samples of `shard` in work."""
    return path / LOCKS / f"{shard_name(shard)}.working"


def note_seen_death(working: Place) -> None:
    """Note that a surviving process saw how the owner of the file `working` ended by its own fault. Raises OSError."""
    rename(working, working.with_suffix(".seen").name)


def read_suspicions(path: Place, shard: Shard) -> Suspicions:
    """What the dead processes of the run folder `path` left, as far as it concerns `shard`; changes nothing."""
    deaths: dict[str, int] = {}
    tried_again: set[str] = set()
    for name in {
        file.stem for suffix in ("attempts", "working", "seen") for file in (path / LOCKS).glob(f"*.{suffix}")
    }:
        owner = parse_shard_name(name)
        # Processes that write other shards of the same N may be alive; those of another N are not.
        if owner is None or (owner != shard and owner[1] == shard[1]):
            continue
        stored = _read(Suspicions, path / LOCKS / f"{name}.attempts")
        tried_again.update(stored.tried_again)
        counted = {**stored.alone_deaths}
        for suffix, counts in (("working", 1), ("seen", ENOUGH_DEATHS)):
            died = _read(_Working, path / LOCKS / f"{name}.{suffix}")
            for sample_id in died.samples:
                counted[sample_id] = counted.get(sample_id, 0) + (counts if died.alone else 0)
        for sample_id, number in counted.items():
            deaths[sample_id] = max(number, deaths.get(sample_id, 0))
    return Suspicions(alone_deaths=deaths, tried_again=tuple(sorted(tried_again)))


class Attempts:
    """The samples that one shard of the run folder `path` has in work, and the suspects. Its lock must be held.

    Threads may call it. Raises CommitError if the disk refuses, and before each change what `require_lock` raises.
    """

    def __init__(self, path: Place, shard: Shard, require_lock: Callable[[], None] = lambda: None) -> None:
        self._require_lock = require_lock
        self._working = working_path(path, shard)
        self._file = self._working.with_suffix(".attempts")
        found = read_suspicions(path, shard)
        self._alone_deaths = {**found.alone_deaths}
        self._tried_again = {*found.tried_again}
        self.died_last = _alone(self._working) | _alone(self._working.with_suffix(".seen"))
        """The sample that was alone in work when the last process died; empty if there is none."""
        self._in_work: Counter[str] = Counter()
        self._ended = False
        self._writing = Lock()
        with self._writing:
            if self._alone_deaths:
                self._save()
            for left in (self._working, self._working.with_suffix(".seen")):
                self._remove(left)

    def is_suspect(self, sample_id: str) -> bool:
        """Whether a process died while the sample was in work, since it last succeeded."""
        return sample_id in self._alone_deaths

    def is_set_aside(self, sample_id: str) -> bool:
        """Whether enough processes died while the sample was alone in work."""
        return self._alone_deaths.get(sample_id, 0) >= ENOUGH_DEATHS

    def once_more(self) -> set[str]:
        """Ids of the samples that were set aside and get one more try."""
        return self._suspicions().once_more()

    @contextmanager
    def working_on(self, sample_ids: Sequence[str], *, alone: bool = False) -> Iterator[None]:
        """Keep the samples in work until the block ends, also with an error; `alone` says that nothing else is.

        A lost device counts as a death, because this process cannot continue.
        """
        self._note(started=sample_ids, alone=alone)
        try:
            yield
        except BrokenOffError:
            self._ended = True  # the file stays, as after a death
            raise
        except BaseException:
            self._note(ended=sample_ids)
            raise
        self._note(ended=sample_ids)

    def count_death(self, sample_id: str, *, by_itself: bool) -> None:
        """Count a death that this process saw while the sample was alone in work; `by_itself` sets it aside at once."""
        with self._writing:
            deaths = self._alone_deaths.get(sample_id, 0)
            self._alone_deaths[sample_id] = ENOUGH_DEATHS if by_itself else deaths + 1
            self._save()

    def try_again(self, sample_id: str) -> None:
        """Note that a sample that was set aside is tried again now; a plain start does that once."""
        with self._writing:
            self._tried_again.add(sample_id)
            self._save()

    def clear(self, sample_ids: Iterable[str]) -> None:
        """Forget what is known of samples that got through."""
        with self._writing:
            known = [sample_id for sample_id in sample_ids if sample_id in self._alone_deaths]
            for sample_id in known:
                del self._alone_deaths[sample_id]
                self._tried_again.discard(sample_id)
            if known:
                self._save()

    def end(self) -> None:
        """The process ends in order: nothing is in work any more, whatever its threads still do."""
        with self._writing:
            if not self._ended:
                self._ended = True
                self._remove(self._working)

    def _note(self, *, started: Sequence[str] = (), ended: Sequence[str] = (), alone: bool = False) -> None:
        with self._writing:
            self._in_work.update(started)
            self._in_work.subtract(ended)
            self._in_work = +self._in_work
            if self._ended:
                return
            if self._in_work:
                self._write(self._working, _Working(samples=tuple(self._in_work), alone=alone))
            else:
                self._remove(self._working)

    def _suspicions(self) -> Suspicions:
        return Suspicions(alone_deaths=self._alone_deaths, tried_again=tuple(sorted(self._tried_again)))

    def _save(self) -> None:
        self._write(self._file, self._suspicions())

    def _write(self, file: Place, content: Suspicions | _Working) -> None:
        # A file survives the death of the process that wrote it, even if it is not flushed to the disk.
        with reporting_disk_errors(file, "written"):
            self._require_lock()
            write_atomically(file, json.dumps(to_json(content)).encode(), flush=False)

    def _remove(self, file: Place) -> None:
        with reporting_disk_errors(file, "removed"):
            self._require_lock()
            file.unlink(missing_ok=True)


def _alone(file: Place) -> frozenset[str]:
    working = _read(_Working, file)
    return frozenset(working.samples) if working.alone else frozenset()


def _read(kind: type[T], file: Place) -> T:
    """The content of `file`; that of an empty one if it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        content: Any = json.loads(file.read_bytes())
        return from_json(kind, content)
    return kind()

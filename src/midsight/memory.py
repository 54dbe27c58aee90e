"""Free memory of this machine, as far as this process may use it, and what a process takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
"""Linux: limits and use of memory, of containers and of the jobs of a scheduler."""
OWN_CGROUPS = Path("/proc/self/cgroup")
"""Linux: the groups of this process, one a line: number, controllers, path."""
LIMITS = (
    ("memory.max", "memory.current"),
    ("memory.high", "memory.current"),  # above it, the kernel slows a process down until it hardly moves
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Files of a group: a limit and what counts towards it; the first two of version 2, the last of version 1."""


def free_memory() -> int:
    """Free bytes of this machine, or less if a container or a job of a scheduler limits this process."""
    return max(0, min((psutil.virtual_memory().available, *_free_in_groups())))


def memory_of(process: int) -> int:
    """Bytes of main memory that a process takes, by its number; 0 if it has ended."""
    with suppress(psutil.Error):
        return psutil.Process(process).memory_info().rss
    return 0


def _free_in_groups() -> Iterator[int]:
    """What is left in every group that this process is in and that has a limit."""
    for folder in _own_folders():
        for limit, used in LIMITS:
            with suppress(OSError, ValueError):  # no such group, or no limit
                free = int((folder / limit).read_text()) - int((folder / used).read_text())
                yield free + _reclaimable(folder)


def _own_folders() -> Iterator[Path]:
    """The folders of this process's groups, with those around them; groups of both versions."""
    paths = ["/"]
    with suppress(OSError, ValueError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                paths.append(path)
    for path in dict.fromkeys(paths):
        own = Path(path.lstrip("/"))
        for root in (CGROUPS, CGROUPS / "memory"):
            yield from (root / folder for folder in (own, *own.parents))


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files, which the kernel gives back when memory is short."""
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
    return 0

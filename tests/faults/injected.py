"""Faults in what a process does to the disk: it is killed there, or the disk refuses. Only inside that process."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Act = Literal["open", "write", "flush", "rename", "remove"]
"""What is done to a file: opened to be written, written, flushed to the disk, renamed, removed."""


@dataclass(frozen=True)
class Fault:
    """Where a process meets its fault, among all it does to the files of `parts/`."""

    act: Act
    """What it does; a write is broken off in its middle."""
    suffix: Literal[".parquet", ".json"]
    """To which files: parts or commit records."""
    after: bool = False
    """Whether the act is done first."""
    number: int = 1
    """At how many such acts it happens, from 1."""
    error: int | None = None
    """The error number that the disk then answers; None kills the process."""
    lasting: bool = False
    """Whether every later act that takes room meets the same error: a disk that is full stays full."""


class Disk:
    """Counts the acts of this process and lets it meet its fault."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0
        self.broken = False
        self.current = ""
        """Name of the file that was opened last and not renamed yet."""

    def meets(self, act: Act, name: str) -> bool:
        """Counts an act; whether it is the one, or one after it that takes room on a disk that stays full."""
        if self.broken:
            return self.fault.lasting and act in ("open", "write", "flush")
        if act != self.fault.act or Path(name.removesuffix(".tmp")).suffix != self.fault.suffix:
            return False
        self.seen += 1
        return self.seen == self.fault.number

    def strike(self) -> None:
        """What happens at the fault."""
        if self.fault.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        self.broken = True
        raise OSError(self.fault.error, os.strerror(self.fault.error or 0))

    def around(self, act: Act, name: str, do: Callable[[], Any]) -> Any:
        """Does something, with the fault before or after it."""
        met = self.meets(act, name)
        if met and not self.fault.after:
            self.strike()
        result = do()
        if met:
            self.strike()
        return result


class TornFile(io.FileIO):
    """A file of which one write ends in its middle."""

    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path, "wb")
        self.disk = disk

    def write(self, data: Any, /) -> int | None:
        """Writes half of `data` where the fault is met."""
        if self.disk.meets("write", Path(os.fsdecode(self.name)).name):
            super().write(memoryview(data)[: len(memoryview(data)) // 2])
            self.disk.strike()
        return super().write(data)


def inject(fault: Fault) -> None:
    """From now on this process meets `fault`."""
    disk = Disk(fault)
    opened, flushed, renamed, removed = io.open, os.fsync, os.replace, os.unlink

    def open_(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not _in_parts(path) or mode != "wb":
            return opened(path, mode, *arguments, **options)
        disk.current = Path(path).name
        return disk.around("open", disk.current, lambda: io.BufferedWriter(TornFile(Path(path), disk)))

    def fsync(file: int) -> None:
        disk.around("flush", disk.current, lambda: flushed(file))

    def replace(source: Any, target: Any, **options: Any) -> None:
        if not _in_parts(target):
            return renamed(source, target, **options)
        disk.current = ""  # what is flushed next is the folder
        return disk.around("rename", Path(target).name, lambda: renamed(source, target, **options))

    def unlink(path: Any, **options: Any) -> None:
        if not _in_parts(path) or Path(path).suffix == ".tmp" or not Path(path).exists():  # no part, only failures
            return removed(path, **options)
        return disk.around("remove", Path(path).name, lambda: removed(path, **options))

    io.open, os.fsync, os.replace, os.unlink = open_, fsync, replace, unlink


def _in_parts(path: Any) -> bool:
    return isinstance(path, str | Path) and Path(path).parent.name == "parts"

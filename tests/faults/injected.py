"""Faults of the disk inside one process: at a chosen file operation the process is killed, or the disk fails."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Operation = Literal["open", "write", "flush", "rename", "remove"]
"""A file operation; `open` is for writing."""


@dataclass(frozen=True)
class Fault:
    """The file operation in `parts/` at which a process fails."""

    operation: Operation
    """Kind of the operation; a write fails half-way."""
    suffix: Literal[".parquet", ".json"]
    """Suffix of the file: that of parts or of commit records."""
    after: bool = False
    """Whether the operation is completed first."""
    number: int = 1
    """Which of these operations fails, counted from 1."""
    error: int | None = None
    """Error number of the failure; None kills the process."""
    lasting: bool = False
    """Whether later operations that need space fail too, as on a full disk."""
    read_only: bool = False
    """Whether every later operation fails, also on locks, as on a disk that the system made read-only."""


class Disk:
    """Counts the file operations of this process and lets one fail."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.seen = 0
        self.failed = False
        self.current = ""
        """Name of the file that was opened last and is not renamed yet."""

    def fails_at(self, operation: Operation, name: str) -> bool:
        """Counts an operation and returns whether it fails."""
        if self.failed:
            return self.fault.read_only or (self.fault.lasting and operation in ("open", "write", "flush"))
        if operation != self.fault.operation or Path(name.removesuffix(".tmp")).suffix != self.fault.suffix:
            return False
        self.seen += 1
        return self.seen == self.fault.number

    def fail(self) -> None:
        """Kills the process or raises the fault's error."""
        if self.fault.error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        self.failed = True
        raise OSError(self.fault.error, os.strerror(self.fault.error or 0))

    def run(self, operation: Operation, name: str, do: Callable[[], Any]) -> Any:
        """Does the operation, or fails before or after it."""
        fails = self.fails_at(operation, name)
        if fails and not self.fault.after:
            self.fail()
        result = do()
        if fails:
            self.fail()
        return result


class TornFile(io.FileIO):
    """A file in which one write stops half-way."""

    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path, "wb")
        self.disk = disk

    def write(self, data: Any, /) -> int | None:
        """Writes `data`, or half of it at the fault."""
        if self.disk.fails_at("write", Path(os.fsdecode(self.name)).name):
            super().write(memoryview(data)[: len(memoryview(data)) // 2])
            self.disk.fail()
        return super().write(data)


def inject(fault: Fault) -> None:
    """Injects `fault` into this process."""
    disk = Disk(fault)
    opened, flushed, renamed, removed = io.open, os.fsync, os.replace, os.unlink

    def reaches(path: Any) -> bool:
        return _in(path, "parts") or (fault.read_only and disk.failed and _in(path, "locks"))

    def open_(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not reaches(path) or mode != "wb":
            return opened(path, mode, *arguments, **options)
        disk.current = Path(path).name
        return disk.run("open", disk.current, lambda: io.BufferedWriter(TornFile(Path(path), disk)))

    def fsync(file: int) -> None:
        disk.run("flush", disk.current, lambda: flushed(file))

    def replace(source: Any, target: Any, **options: Any) -> None:
        if not reaches(target):
            return renamed(source, target, **options)
        disk.current = ""  # the folder is flushed next
        return disk.run("rename", Path(target).name, lambda: renamed(source, target, **options))

    def unlink(path: Any, **options: Any) -> None:
        # A commit of failures has no part.
        if not reaches(path) or (Path(path).suffix == ".tmp" and not fault.read_only) or not Path(path).exists():
            return removed(path, **options)
        return disk.run("remove", Path(path).name, lambda: removed(path, **options))

    io.open, os.fsync, os.replace, os.unlink = open_, fsync, replace, unlink


def _in(path: Any, folder: str) -> bool:
    return isinstance(path, str | Path) and Path(path).parent.name == folder

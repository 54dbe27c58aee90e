"""Disks that refuse, full ones and failing ones: one sentence says so, what is committed stays, the run goes on."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from faults.command import FORKING, HANGS_S, Ended, extract_call, midsight, run_here
from faults.content import demand_part_of, demand_sound, demand_whole
from faults.experiment import Experiment, Outcome, attempts, demand
from faults.injected import Fault
from faults.kills import COMMITS_AT_POINTS, SAMPLES_AT_POINTS, Uninterrupted, demand_finishes, uninterrupted
from midsight.store import open_run

GROUP = "Disks that refuse"
STOPPED = 3

CLONE_NEWNS, CLONE_NEWUSER, MS_REMOUNT = 0x00020000, 0x10000000, 32


def full(count: int, seed: int) -> Outcome:
    """From some moment on nothing can be opened, written or flushed for want of room."""
    return refusing(count, seed, errno.ENOSPC, lasting=True)


def failing(count: int, seed: int) -> Outcome:
    """One act, or every one from then on, ends with an I/O error."""
    return refusing(count, seed, errno.EIO, lasting=None)


def refusing(count: int, seed: int, error: int, *, lasting: bool | None) -> Outcome:
    """The error at a random act of a random commit; without `lasting`, every other time it stays."""
    with uninterrupted(SAMPLES_AT_POINTS) as whole:

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run = folder / "run"
            fault = Fault(
                act=("open", "write", "flush", "rename")[number % 4],
                suffix=(".parquet", ".json")[number // 4 % 2],
                number=int(random.integers(1, COMMITS_AT_POINTS + 1)),
                error=error,
                lasting=number % 2 == 0 if lasting is None else lasting,
            )
            done = midsight(extract_call(whole.data, run), folder / "said", fault)
            demand_said(done, error)
            demand_part_of(run, whole.content)
            demand_sound(run)
            demand(not any(run.glob("parts/.*")), "half of a file is left")
            kept = len(open_run(run))
            demand_finishes(whole, run, folder / "said")
            return {"rows were stored before": kept}

        return attempts(count, seed, attempt)


def file_system_that_is_full(count: int, seed: int) -> Outcome:
    """A file system in memory, of a size between that of a third of the run, below which it is not begun, and most."""
    with uninterrupted(SAMPLES_AT_POINTS) as whole:
        pages = sum(-(-file.stat().st_size // 4096) for file in whole.run.rglob("*.*") if file.is_file())

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            (folder / "disk").mkdir()
            bytes_ = 4096 * int(random.integers(pages // 3, pages * 4 // 5))
            ours, theirs = multiprocessing.Pipe()
            process = FORKING.Process(target=on_small_disk, args=(whole, folder, bytes_, theirs))
            process.start()
            theirs.close()
            # Twice the time of a command that hangs: there are two.
            problem = ours.recv() if ours.poll(2 * HANGS_S + 60) else "it never ends"
            process.kill()
            process.join()
            demand(not problem, problem)
            return {"kB of disk in all": bytes_ // 1024}

        return attempts(count, seed, attempt)


def can_mount() -> bool:
    """Whether this machine lets a process without rights mount a file system of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = FORKING.Process(target=_try_to_mount, args=(theirs,))
    process.start()
    theirs.close()
    can = ours.recv()
    process.join()
    return can


def on_small_disk(whole: Uninterrupted, folder: Path, bytes_: int, report: Connection) -> None:
    """In a process of its own: fills a disk of so many bytes, makes it larger, finishes, sends what did not hold."""
    try:
        disk, run = folder / "disk", folder / "disk" / "run"
        mount(disk, bytes_)
        demand_said(forked(extract_call(whole.data, run), folder / "said"), errno.ENOSPC)
        demand_part_of(run, whole.content)
        demand_sound(run)
        demand(not any(run.glob("parts/.*")), "half of a file is left")
        mount(disk, 64 * 2**20, MS_REMOUNT)
        done = forked(extract_call(whole.data, run), folder / "said")
        demand(done.exit_code == 1, f"started again it ends with {done.exit_code}: {done.said}")
        demand_whole(run, whole.content)
        report.send("")
    except BaseException:
        report.send(traceback.format_exc(limit=3))


def forked(arguments: list[object], said: Path) -> Ended:
    """The midsight command in a child of this process, which shares its file systems."""
    child = os.fork()
    if not child:
        code: object = 70
        try:
            run_here([*map(str, arguments)], said)
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code if isinstance(code, int) else 70)
    ends = time.monotonic() + HANGS_S + 10
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < ends:
        time.sleep(0.01)
    if status == (0, 0):
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status[1]), said.read_text())


def mount(path: Path, bytes_: int, flags: int = 0) -> None:
    """Mounts a file system in memory at `path`, first in namespaces of this process's own. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not flags:
        user, group = os.getuid(), os.getgid()
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "no namespace")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"none", os.fsencode(path), b"tmpfs", flags, b"size=%d" % bytes_):
        raise OSError(ctypes.get_errno(), "no mount")


def _try_to_mount(report: Connection) -> None:
    try:
        mount(Path("/tmp"), 2**20)  # noqa: S108  (this process's own view of it)
    except (OSError, AttributeError):
        report.send(False)
    else:
        report.send(True)


def demand_said(done: Ended, error: int) -> None:
    """Demands exit code 3 and one sentence that names the error and says what to do."""
    demand(done.exit_code == STOPPED, f"it ends with {done.exit_code}: {done.said}")
    sentences = [line for line in done.said.splitlines() if line.startswith("Error: ")]
    demand(len(sentences) == 1 and "Traceback" not in done.said, f"it says {done.said}")
    said = f": {os.strerror(error)}; what was committed before is intact, so mend that and run the same command again"
    demand(said in sentences[0], f"it says {sentences[0]}")


EXPERIMENTS = (
    Experiment(GROUP, "a full disk (ENOSPC) at any step of a commit", full, 20, 4),
    Experiment(GROUP, "a small file system that is full before the run is done", file_system_that_is_full, 20, 2),
    Experiment(GROUP, "an I/O error (EIO) at any step of a commit, once or from then on", failing, 10, 3),
)

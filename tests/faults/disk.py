"""Full and failing disks: the command says so in one sentence, keeps all commits, and resumes later."""

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

from faults.command import FORKING, TIMEOUT_S, Ended, extract_arguments, run_command, run_here
from faults.content import require_complete, require_part_of, require_sound
from faults.experiment import Experiment, Outcome, attempts, require
from faults.injected import Fault
from faults.kills import COMMITS_AT_POINTS, SAMPLES_AT_POINTS, Uninterrupted, require_finish, uninterrupted
from midsight.store import open_run

GROUP = "Failing disks"
STOPPED = 3

CLONE_NEWNS, CLONE_NEWUSER, MS_REMOUNT = 0x00020000, 0x10000000, 32


def full(count: int, seed: int) -> Outcome:
    """From a random moment on, opening, writing and flushing files fail because the disk is full."""
    return refusing(count, seed, errno.ENOSPC, lasting=True)


def failing(count: int, seed: int) -> Outcome:
    """One operation, or every one from then on, fails with an I/O error."""
    return refusing(count, seed, errno.EIO, lasting=None)


def read_only(count: int, seed: int) -> Outcome:
    """From a random moment on, nothing can be written, renamed or removed any more."""
    return refusing(count, seed, errno.EROFS, lasting=True, read_only=True)


def refusing(count: int, seed: int, error: int, *, lasting: bool | None, read_only: bool = False) -> Outcome:
    """The error comes at a random operation of a random commit; it lasts if `lasting`, or every other time if None."""
    with uninterrupted(SAMPLES_AT_POINTS) as whole:

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run = folder / "run"
            fault = Fault(
                operation=("open", "write", "flush", "rename")[number % 4],
                suffix=(".parquet", ".json")[number // 4 % 2],
                number=int(random.integers(1, COMMITS_AT_POINTS + 1)),
                error=error,
                lasting=number % 2 == 0 if lasting is None else lasting,
                read_only=read_only,
            )
            done = run_command(extract_arguments(whole.data, run), folder / "output", fault)
            require_disk_error(done, error)
            require_part_of(run, whole.content)
            require_sound(run)
            require(read_only or not any(run.glob("parts/.*")), "an incomplete file is left")
            kept = len(open_run(run))
            require_finish(whole, run, folder / "output")
            return {"rows stored before": kept}

        return attempts(count, seed, attempt)


def file_system_that_is_full(count: int, seed: int) -> Outcome:
    """A file system in memory that holds between a third and four fifths of the run.

    With less than a third the run would not start.
    """
    with uninterrupted(SAMPLES_AT_POINTS) as whole:
        pages = sum(-(-file.stat().st_size // 4096) for file in whole.run.rglob("*.*") if file.is_file())

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            (folder / "disk").mkdir()
            bytes_ = 4096 * int(random.integers(pages // 3, pages * 4 // 5))
            ours, theirs = multiprocessing.Pipe()
            process = FORKING.Process(target=on_small_disk, args=(whole, folder, bytes_, theirs))
            process.start()
            theirs.close()
            # The process runs two commands, so it gets twice their timeout.
            problem = ours.recv() if ours.poll(2 * TIMEOUT_S + 60) else "it does not end"
            process.kill()
            process.join()
            require(not problem, problem)
            return {"kB of disk in all": bytes_ // 1024}

        return attempts(count, seed, attempt)


def can_mount() -> bool:
    """Whether an unprivileged process may mount a file system on this machine."""
    ours, theirs = multiprocessing.Pipe()
    process = FORKING.Process(target=_try_to_mount, args=(theirs,))
    process.start()
    theirs.close()
    can = ours.recv()
    process.join()
    return can


def on_small_disk(whole: Uninterrupted, folder: Path, bytes_: int, report: Connection) -> None:
    """Fills a disk of `bytes_` bytes, makes it larger and finishes the run; sends what failed, or an empty text.

    Runs in its own process.
    """
    try:
        disk, run = folder / "disk", folder / "disk" / "run"
        mount(disk, bytes_)
        require_disk_error(run_forked(extract_arguments(whole.data, run), folder / "output"), errno.ENOSPC)
        require_part_of(run, whole.content)
        require_sound(run)
        require(not any(run.glob("parts/.*")), "an incomplete file is left")
        mount(disk, 64 * 2**20, MS_REMOUNT)
        done = run_forked(extract_arguments(whole.data, run), folder / "output")
        require(done.exit_code == 1, f"started again it ends with {done.exit_code}: {done.output}")
        require_complete(run, whole.content)
        report.send("")
    except BaseException:
        report.send(traceback.format_exc(limit=3))


def run_forked(arguments: list[object], output: Path) -> Ended:
    """Runs the midsight command in a child of this process, which sees the same file systems."""
    child = os.fork()
    if not child:
        code: object = 70
        try:
            run_here([*map(str, arguments)], output)
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code if isinstance(code, int) else 70)
    ends = time.monotonic() + TIMEOUT_S + 10
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < ends:
        time.sleep(0.01)
    if status == (0, 0):
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status[1]), output.read_text())


def mount(path: Path, bytes_: int, flags: int = 0) -> None:
    """Mounts a file system in memory at `path`, at first in new namespaces of this process. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not flags:
        user, group = os.getuid(), os.getgid()
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "no new namespace")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"none", os.fsencode(path), b"tmpfs", flags, b"size=%d" % bytes_):
        raise OSError(ctypes.get_errno(), "not mounted")


def _try_to_mount(report: Connection) -> None:
    try:
        mount(Path("/tmp"), 2**20)  # noqa: S108  (only this process sees it)
    except (OSError, AttributeError):
        report.send(False)
    else:
        report.send(True)


def require_disk_error(done: Ended, error: int) -> None:
    """Requires exit code 3 and one sentence with the error and a remedy."""
    require(done.exit_code == STOPPED, f"it ends with {done.exit_code}: {done.output}")
    sentences = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    require(len(sentences) == 1 and "Traceback" not in done.output, f"it says {done.output}")
    sentence = (
        f": {os.strerror(error)}; what was committed before is intact, so fix that and run the same command again"
    )
    require(sentence in sentences[0], f"it says {sentences[0]}")


EXPERIMENTS = (
    Experiment(GROUP, "a full disk (ENOSPC) at any step of a commit", full, 20, 4),
    Experiment(GROUP, "a small file system that fills up during the run", file_system_that_is_full, 20, 2),
    Experiment(GROUP, "an I/O error (EIO) at any step of a commit, once or from then on", failing, 10, 3),
    Experiment(GROUP, "a disk that turns read-only (EROFS) at any step of a commit", read_only, 10, 2),
)

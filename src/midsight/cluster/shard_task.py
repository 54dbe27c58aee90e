"""One task of an array job: `midsight extract` on one shard, stopped and started again as the cluster wants it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from midsight.errors import MidsightError

FINISHED = (0, 1)
"""Exit codes of a shard that is done; 1: samples failed, which a restart would not help."""


class ShardTask:
    """Does one shard in a process of its own; submitit pickles it, and calls `checkpoint` before it requeues the task.

    The process has its own process group. So only this task's signals reach it, and each of them stops it once.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """`command` is a program and its arguments, less `--shard`."""
        self.command = tuple(command)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, shard: str) -> None:
        """Does the shard `I/N` to its end.

        Raises:
            MidsightError: The command ended otherwise; its own sentence is in the task's log.
        """
        signal.signal(signal.SIGTERM, self._pass_on)
        command = [*self.command, "--shard", shard]
        self._process = subprocess.Popen(command, start_new_session=True)  # noqa: S603
        code = self._process.wait()
        if code not in FINISHED:
            raise MidsightError(f"Shard {shard} ended with exit code {code}; the sentence above says why.")

    def checkpoint(self, shard: str) -> Any:
        """Stops the command, which commits all that is computed, and returns what resumes it."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._pass_on(signal.SIGUSR1)
            with suppress(ChildProcessError):
                # `Popen.wait` would wait for itself here: a signal's handler runs inside the call that it interrupts
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(ShardTask(self.command), shard)

    def _pass_on(self, number: int, _frame: object = None) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

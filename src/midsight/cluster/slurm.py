"""An extraction as an array job of Slurm, one shard a task, through submitit."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midsight.cluster.shard_task import ShardTask
from midsight.errors import MidsightError, Option
from midsight.store.optional import import_optional

if TYPE_CHECKING:
    from submitit import Job

MOST_RESTARTS = 20
"""How often a task is requeued because its time was up."""
STOP_SECONDS = 120
"""Seconds before its time is up in which a task commits what it has computed."""
LONG_NAMES = {
    "A": "account", "C": "constraint", "G": "gpus", "J": "job-name", "N": "nodes", "a": "array", "c": "cpus-per-task",
    "d": "dependency", "e": "error", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time",
    "w": "nodelist", "x": "exclude",
}  # fmt: skip
"""What the one-letter options of `sbatch` mean that matter here."""
OURS = {
    "array": "give {shards} instead",
    "output": "logs go to the folder of {logs}",
    "error": "logs go to the folder of {logs}",
    "open-mode": "logs are appended to",
    "signal": "midsight asks for the signal that it needs",
    "ntasks": "each shard is one task",
    "nodes": "each shard is one task",
}
"""Options of `sbatch` that midsight sets, and why."""
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Submitted:
    """The tasks of one submission."""

    jobs: Sequence[Job[None]]
    """One job for each shard, in order."""
    logs: Path
    """Folder of the tasks' logs, and of submitit's own files."""

    @property
    def array(self) -> str:
        """The id of the whole array, as Slurm's commands take it."""
        return self.jobs[0].job_id.partition("_")[0]


def submit_shards(arguments: Sequence[str], shards: int, logs: Path, slurm: Mapping[str, str | bool], *,
                  local: bool = False) -> Submitted:  # fmt: skip
    """Submits one task for each shard.

    Args:
        arguments: Arguments of `midsight extract`, without `--shard`.
        shards: Number of shards.
        logs: Folder for logs and submitit's files, on a file system that all nodes share.
        slurm: Options of `sbatch` by their long names, with `time`; True for an option without a value.
        local: Whether the tasks run on this machine, all at once, instead of on a cluster.

    Returns:
        The tasks.

    Raises:
        MidsightError: submitit is not installed, there is no Slurm here, or Slurm refuses the job.
    """
    submitit: Any = import_optional("submitit")
    if not local and shutil.which("sbatch") is None:
        raise MidsightError("There is no Slurm on this machine, because sbatch is not found; call midsight slurm on a "
                            "login node, or try it here with ", Option("local"), ".")  # fmt: skip
    minutes = minutes_of(slurm)
    logs.mkdir(parents=True, exist_ok=True)
    if local:
        executor = submitit.LocalExecutor(logs.absolute())
        executor.update_parameters(timeout_min=minutes, stderr_to_stdout=True)
    else:
        executor = submitit.SlurmExecutor(logs.absolute(), max_num_timeout=MOST_RESTARTS)
        executor.update_parameters(
            time=minutes,
            stderr_to_stdout=True,
            wckey=None,  # submitit's own is not known to every cluster
            array_parallelism=shards,
            signal_delay_s=STOP_SECONDS,
            additional_parameters={
                "job_name": "midsight",
                "requeue": True,
                **{name.replace("-", "_"): value for name, value in slurm.items()},  # as submitit spells its own
            },
        )
    task = ShardTask([sys.executable, "-m", "midsight", "extract", *arguments])
    try:
        jobs = executor.map_array(task, [f"{number}/{shards}" for number in range(shards)])
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise MidsightError(f"Slurm refused the job: {' '.join(str(error).split())}") from None
    return Submitted(jobs, logs)


def parse_sbatch(words: Sequence[str]) -> dict[str, str | bool]:
    """Options of `sbatch` by their long names, as in `--partition gpu --gres=gpu:1 -t 8:00:00 --exclusive`.

    Raises:
        MidsightError: A word is no option, midsight sets that option itself, or `time` is missing.
    """
    found: dict[str, str | bool] = {}
    for name, value in _options(words):
        if reason := OURS.get(name):
            raise MidsightError(*_with_options(f"--{name} cannot be given to Slurm here: {reason}."))
        found[name] = value
    minutes_of(found)
    return found


def _options(words: Sequence[str]) -> Iterator[tuple[str, str | bool]]:
    rest = [*words]
    while rest:
        word = rest.pop(0)
        if not (match := re.fullmatch(r"--([a-z][a-z-]*)(?:=(.*))?|-([A-Za-z])(.*)", word, re.DOTALL)):
            raise MidsightError(f"{word!r} is no option of sbatch; write options as --partition gpu or --gres=gpu:1.")
        name = match[1] or LONG_NAMES.get(match[3], match[3])
        if len(name) == 1:
            raise MidsightError(f"-{name} is not known here; write that option of sbatch by its long name.")
        value = match[2] if match[1] else match[4] or None
        if value is None and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        yield name, True if value is None else value


def _with_options(text: str) -> list[Any]:
    """The sentence's parts, with {NAME} as an option of the call."""
    return [Option(part) if number % 2 else part for number, part in enumerate(re.split(r"\{(\w+)\}", text))]


def minutes_of(slurm: Mapping[str, str | bool]) -> int:
    """Minutes of `time`, as sbatch spells it: 30, 8:00:00, 30:00, 1-12, 1-12:00 or 1-12:00:00; at least 1.

    Raises:
        MidsightError: It is missing or spelled otherwise.
    """
    text = slurm.get("time")
    if not isinstance(text, str):
        raise MidsightError("How long a task may run is missing; give it after --, as in -- --time 8:00:00.")
    match = _DURATION.fullmatch(text)
    if match is None:
        raise MidsightError(f"--time {text} is no time; write minutes, hours:minutes:seconds or days-hours.")
    days, first, second, _ = (int(part or 0) for part in match.groups())
    if match[1] is not None:
        return max(1, (days * 24 + first) * 60 + second)
    return max(1, first * 60 + second if match[4] is not None else first)

"""The script of docs/slurm.md, with stand-ins for Slurm's commands: an array of shards, one stopped and requeued."""

import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faults.command import start, wait_for
from faults.made_up_model import Behaviour, write_dataset
from midsight.store import open_run

PAGE = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text(encoding="utf-8")
SCRIPT = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0]
OPTIONS = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SCRIPT, re.MULTILINE))
SAMPLES = 200
SLOW_S = 0.05
"""Time of each sample of the task that is stopped; in calls of one sample it has time to stop, whatever its shard."""
STAND_INS = {
    "srun": """printf '%s\\n' "$@" >asked; read -r code <ended; exit "$code" """,
    "scontrol": """echo "$@" >>requeued""",
}


@dataclass
class Cluster:
    """Runs the tasks of an array one after the other, in `folder`, and a requeued task again."""

    folder: Path
    stopped: str = ""
    """The task whose first run gets the signal of --signal once it has done a sample."""
    codes: list[tuple[str, int]] = field(default_factory=list)
    """Each task that has run and its exit code."""
    outputs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, text in STAND_INS.items():
            (self.folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (self.folder / name).chmod(0o755)
        for name in ("asked", "ended"):
            os.mkfifo(self.folder / name)
        (self.folder / "extract.sbatch").write_text(SCRIPT)
        threading.Thread(target=self._serve, daemon=True).start()

    def sbatch(self, *tasks: str) -> None:
        requeued = self.folder / "requeued"
        for task in tasks:
            restarts = 0
            while restarts == 0 or requeued.exists():
                requeued.unlink(missing_ok=True)
                self._run(task, restarts)
                restarts += 1
                if requeued.exists():
                    assert requeued.read_text() == f"requeue 77_{task}\n"

    def _run(self, task: str, restarts: int) -> None:
        given = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": task}
        given |= {"SLURM_RESTART_COUNT": f"{restarts}"} if restarts else {}
        environment = {**os.environ, **given, "PATH": f"{self.folder}:{os.environ['PATH']}"}
        ended = subprocess.run(["bash", "extract.sbatch"], cwd=self.folder, env=environment, timeout=120, check=False)
        self.codes.append((task, ended.returncode))

    def _serve(self) -> None:
        """Runs what `srun` is asked to run, with the made-up model."""
        while True:
            program, *arguments = (self.folder / "asked").read_text().splitlines()
            assert program == "midsight"
            is_stopped = f"{self.stopped}/" in arguments[-1] and not any(t == self.stopped for t, _ in self.codes)
            (self.folder / "ended").write_text(f"{self._midsight(arguments, is_stopped)}\n")

    def _midsight(self, arguments: list[str], is_stopped: bool) -> int:
        here = {"questions.jsonl": self.folder / "questions.jsonl", "runs/first": self.folder / "runs/first"}
        counted, output = self.folder / "counted", self.folder / "output"
        counted.unlink(missing_ok=True)
        behaviour = Behaviour(seconds=SLOW_S if is_stopped else 0.0, counted=counted)
        small_calls = ["--batch-size", "1"] if is_stopped else []
        called = [here.get(argument, argument) for argument in arguments] + small_calls
        process = start(called, output, behaviour=behaviour)
        if is_stopped:
            _wait_for_a_sample(counted)
            assert process.pid is not None
            os.kill(process.pid, getattr(signal, "SIG" + OPTIONS["signal"].split("@")[0]))
        ended = wait_for(process, output)
        self.outputs.append(ended.output)
        return ended.exit_code


def _wait_for_a_sample(counted: Path) -> None:
    """Waits until the command has counted more samples than at its start."""
    until = time.monotonic() + 60
    seen: set[str] = set()
    while len(seen) < 2:
        assert time.monotonic() < until
        if counted.exists():
            seen.add(counted.read_text())
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path, SAMPLES, missing=None).rename(tmp_path / "questions.jsonl")
    return tmp_path


def test_the_script_has_as_many_shards_as_tasks_and_may_be_requeued():
    first, last = map(int, OPTIONS["array"].split("-"))
    assert f"shards={last - first + 1} " in SCRIPT
    assert "requeue" in OPTIONS
    assert OPTIONS["signal"] == "USR1@120"
    assert subprocess.run(["bash", "-n"], input=SCRIPT, text=True, check=False).returncode == 0


@pytest.mark.slow
def test_an_array_job_fills_the_run_though_a_task_is_stopped_and_requeued(folder):
    cluster = Cluster(folder, stopped="2")
    cluster.sbatch("0", "1", "2", "3")
    assert cluster.codes == [("0", 0), ("1", 0), ("2", 3), ("2", 0), ("3", 0)], cluster.outputs
    assert "the same command resumes" in cluster.outputs[2]
    run = open_run(folder / "runs/first")
    assert (len(run), run.failures()) == (SAMPLES, [])
    assert sorted(run.table()["sample_id"].to_pylist()) == sorted(f"q{index}" for index in range(SAMPLES))


def test_a_task_that_never_gets_on_is_not_requeued_for_ever(tmp_path):
    (tmp_path / "srun").write_text("#!/bin/bash\nexit 3\n")
    (tmp_path / "scontrol").write_text("#!/bin/bash\ntouch requeued\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    for restarts, requeued in (("19", True), ("20", False)):
        (tmp_path / "requeued").unlink(missing_ok=True)
        given = {"SLURM_RESTART_COUNT": restarts, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        ended = subprocess.run(["bash", "-c", SCRIPT], cwd=tmp_path, env={**os.environ, **given}, check=False)
        assert (ended.returncode, (tmp_path / "requeued").exists()) == (3, requeued)

"""An extraction as an array job: what Slurm is told, and what becomes of a task that is stopped."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import submitit
from typer.testing import CliRunner

from midsight import MidsightError, cli, open_run
from midsight.cluster.shard_task import ShardTask
from midsight.cluster.slurm import minutes_of, parse_sbatch, submit_shards
from support.pictures import encoded, picture

TIME = {"time": "8:00:00"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--partition gpu --time 8:00:00", {"partition": "gpu", "time": "8:00:00"}),
        ("-p gpu -t30", {"partition": "gpu", "time": "30"}),
        ("--gres=gpu:1 --exclusive -t 1-12", {"gres": "gpu:1", "exclusive": True, "time": "1-12"}),
        ("--comment=a=b --time=5", {"comment": "a=b", "time": "5"}),
    ],
)
def test_options_of_sbatch_are_read(words, found):
    assert parse_sbatch(words.split()) == found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "How long a task may run is missing; give it after --, as in -- --time 8:00:00."),
        ("--time", "How long a task may run is missing; give it after --, as in -- --time 8:00:00."),
        ("--time soon", "--time soon is no time; write minutes, hours:minutes:seconds or days-hours."),
        ("gpu", "'gpu' is no option of sbatch; write options as --partition gpu or --gres=gpu:1."),
        ("-Z 3", "-Z is not known here; write that option of sbatch by its long name."),
        ("-a 0-3", "--array cannot be given to Slurm here: give shards instead."),
        ("--output=x.log", "--output cannot be given to Slurm here: logs go to the folder of logs."),
        ("-N2", "--nodes cannot be given to Slurm here: each shard is one task."),
    ],
)
def test_what_cannot_be_an_option_is_refused(words, sentence):
    with pytest.raises(MidsightError) as refused:
        parse_sbatch(words.split())
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("30", 30), ("30:59", 30), ("8:00:00", 480), ("1-12", 2160), ("1-12:30", 2190), ("2-0:05:00", 2885), ("0:20", 1)],
)
def test_times_are_read_as_slurm_reads_them(time, minutes):
    assert minutes_of({"time": time}) == minutes


STAND_IN = """\
import signal, sys, time
started = open({path!r}, "a")
print(*sys.argv[1:], file=started, flush=True)
if {is_long} and len(open({path!r}).readlines()) == 1:
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
    time.sleep(60)
sys.exit({code})
"""


def run_task(folder, *, is_long=False, code=0):
    """A job on this machine that does one shard with a stand-in for midsight, and the calls of the stand-in."""
    calls = folder / "calls"
    task = ShardTask([sys.executable, "-c", STAND_IN.format(path=str(calls), is_long=is_long, code=code)])
    executor = submitit.LocalExecutor(folder / "logs")
    executor.update_parameters(timeout_min=0.05 if is_long else 1, signal_delay_s=1)
    job = executor.map_array(task, ["1/2"])[0]
    job.wait()
    return job, calls.read_text().splitlines()


@pytest.mark.slow
def test_a_task_whose_time_is_up_is_stopped_requeued_and_resumes(tmp_path):
    job, calls = run_task(tmp_path, is_long=True)
    assert (calls, job.exception()) == (["--shard 1/2"] * 2, None), job.stdout()


@pytest.mark.parametrize(("code", "is_done"), [(0, True), (1, True), (2, False), (3, False), (-9, False)])
def test_a_task_ends_well_only_if_its_shard_is_done(tmp_path, code, is_done):
    """1 says that samples failed, which another try would not help."""
    ending = f"import os, sys; sys.exit({code}) if {code} >= 0 else os.kill(os.getpid(), {-code})"
    task = ShardTask([sys.executable, "-c", ending])
    if is_done:
        task("0/1")
    else:
        with pytest.raises(MidsightError, match=rf"^Shard 0/1 ended with exit code {code}; the sentence above says"):
            task("0/1")


SBATCH = """#!/bin/bash
grep '^#SBATCH' "$1" >{folder}/told
for task in 0 1; do
    SLURM_JOB_ID=9$task SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task bash "$1" &
done >{folder}/output 2>&1
echo "Submitted batch job 77"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --output ]] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with stand-ins for Slurm's commands, which are found."""
    for name, text in (("sbatch", SBATCH.format(folder=tmp_path)), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def test_slurm_is_told_what_the_user_says_and_what_midsight_needs(slurm):
    submitted = submit_shards(["x.jsonl"], 2, slurm / "logs", {**TIME, "partition": "gpu", "cpus-per-task": "4"})
    told = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in (slurm / "told").read_text().split("\n")
    )
    expected = {
        "array": "0-1%2", "cpus-per-task": "4", "job-name": "midsight", "open-mode": "append", "partition": "gpu",
        "requeue": "", "signal": "USR2@120", "time": "8:00:00",
    }  # fmt: skip
    assert {name: told.get(name) for name in expected} == expected
    assert "wckey" not in told
    assert ([job.job_id for job in submitted.jobs], submitted.array) == (["77_0", "77_1"], "77")


def test_what_slurm_refuses_is_said_in_one_sentence(slurm):
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    with pytest.raises(MidsightError, match=r"^Slurm refused the job: sbatch: error: invalid"):
        submit_shards(["x.jsonl"], 2, slurm / "logs", TIME)


def call(*words):
    done = CliRunner().invoke(cli.app, ["slurm", "extract", *map(str, words)], env={"COLUMNS": "200"})
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def test_a_wrong_call_of_extract_submits_nothing(slurm):
    after = ["--shards", "2", "--", "--time", "5"]
    code, said = call("x.jsonl", "--out", slurm / "run", *after)
    assert (code, "Missing option '--model'" in said) == (2, True), said
    code, said = call("x.jsonl", "--model", "m", "--out", slurm / "run", "--shard", "0/2", *after)
    assert (code, said) == (2, "Error: --shard cannot be given here, because midsight slurm gives it to each task. ")
    logs = slurm / "run" / "logs"
    code, said = call("x.jsonl", "--model", "m", "--out", slurm / "run", "--logs", logs, *after)
    assert (code, "lies in the run folder" in said) == (2, True), said
    assert not (slurm / "told").exists()


@pytest.mark.slow
def test_the_command_fills_a_run_by_two_tasks(slurm, checkpoint, monkeypatch):
    """By real starts of the command: two, beside the plan, which is made in this process."""
    monkeypatch.chdir(slurm)
    for number in range(4):
        Path(f"{number}.png").write_bytes(encoded(picture((32, 32), number)))
    rows = [{"image": f"{number}.png", "question": "What?"} for number in range(4)]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", checkpoint, "--out", "run", "--device", "cpu", "--no-answers", "--layers", "0"]
    code, said = call("questions.jsonl", *options, "--shards", "2", "--", "--time", "5")
    assert code == 0, said
    assert "Submitted 2 tasks: 77_0, 77_1." in said
    until = time.monotonic() + 300
    while len([*Path("run-slurm").glob("*_result.pkl")]) < 2:
        assert time.monotonic() < until, Path("output").read_text()
        time.sleep(0.2)
    run = open_run("run")
    assert (len(run), run.failures(), len({*run.table()["image_id"].to_pylist()})) == (4, [], 4)
    assert [one.name for one in Path("run").iterdir() if "slurm" in one.name or one.suffix == ".pkl"] == []


def test_a_plan_that_is_wrong_submits_nothing(slurm):
    code, said = call("nope.jsonl", "--model", "m", "--out", slurm / "run", "--shards", "2", "--", "--time", "5")
    assert (code, "Error: nope.jsonl does not exist; give a table file." in said) == (2, True), said
    assert not (slurm / "told").exists()


def test_without_slurm_the_sentence_names_the_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MidsightError, match=r"^There is no Slurm on this machine, because sbatch is not found; call"):
        submit_shards(["x.jsonl"], 2, tmp_path / "logs", TIME)

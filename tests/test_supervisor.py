"""Who gets a supervising process."""

import subprocess
import sys
from pathlib import Path

import pytest

from midsight.commands.supervisor import needs_supervisor
from midsight.store.attempts import working_path

ASKED = """
from midsight.commands.supervisor import needs_supervisor

print([needs_supervisor(device) for device in ("cuda", "cpu")])
"""

WORKER = """
import itertools, os, sys
from pathlib import Path
from midsight.commands import supervisor

calls = itertools.count()

def count_now_and_then(*_):
    if next(calls) % 2:
        raise OSError
    return 7

if sys.argv[2] == "at work, and the store answers now and then":
    supervisor._count = count_now_and_then
supervisor.become_worker(Path(sys.argv[1]), (0, 1))
if sys.argv[2].startswith("at work"):
    Path(sys.argv[1], "locks", "0-of-1.working").write_text("{}")
    if sys.argv[2] == "at work, and another shard commits":
        Path(sys.argv[1], "parts", f"1-of-2-{os.getpid():06}.json").touch()
    os._exit(0)
os.abort() if sys.argv[2] == "crash" else os._exit(int(sys.argv[2]))
"""

ASKED_FOR_LONG = """
import time
from midsight.buckets.path import to_place
from midsight.commands import supervisor

supervisor.ASK_S = 0.1
print(supervisor._ask(to_place("s3://bucket/run"), lambda _: time.sleep(60)))
"""


def test_a_process_that_has_loaded_torch_is_not_forked():
    import torch  # noqa: F401

    assert not needs_supervisor("cuda")


@pytest.mark.slow
def test_the_command_on_a_gpu_has_one():
    asked = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "[True, False]"


@pytest.mark.slow
@pytest.mark.parametrize(("end", "exit_code"), [("crash", 3), ("0", 0), ("2", 2)])
def test_a_worker_is_not_blamed_for_the_samples_of_an_earlier_process(tmp_path, end, exit_code):
    working = Path(str(working_path(tmp_path, (0, 1))))
    working.parent.mkdir()
    working.write_text('{"samples": ["q1"], "alone": true}')
    done = subprocess.run([sys.executable, "-c", WORKER, tmp_path, end], capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_code, done.stderr
    assert ("before it had a sample in work" in done.stderr) == (end == "crash")
    assert [file.name for file in working.parent.iterdir()] == [working.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "beside", ["", ", and another shard commits", ", and the store answers now and then"], ids=["", "others", "store"]
)
def test_a_worker_that_ends_with_samples_in_work_is_started_again_whatever_its_exit_code(tmp_path, beside):
    working_path(tmp_path, (0, 1)).parent.mkdir()
    (tmp_path / "parts").mkdir()
    command = [sys.executable, "-c", WORKER, tmp_path, f"at work{beside}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert "ended with exit code 0, 5 times without a commit" in done.stderr


@pytest.mark.slow
def test_a_question_about_a_bucket_has_a_time_limit():
    command = [sys.executable, "-c", ASKED_FOR_LONG]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert asked.stdout.strip() == "None"

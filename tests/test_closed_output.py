"""Closed and full output: the work goes on, and the exit code says what became of it."""

import os
import sys

import pytest

from faults.command import FORKING, extract_arguments
from faults.made_up_model import Behaviour, load_made_up_models, replace_forward_pass, write_dataset
from midsight.store import open_run
from support.made_up import make_record, write_run

SAMPLES = 20


def run_with(arguments, streams):
    """Runs the command in this process, with files or None (closed) in the place of its standard streams."""
    from midsight import cli

    for number, stream in streams.items():
        if stream is None:
            os.close(number)
        elif stream == "gone":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, number)
        else:
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    replace_forward_pass(Behaviour())
    load_made_up_models()
    sys.argv = ["midsight", *map(str, arguments)]
    cli.main()


def exit_code(arguments, streams):
    process = FORKING.Process(target=run_with, args=(arguments, streams))
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("streams", [{1: "gone"}, {2: "gone"}, {1: "gone", 2: "gone"}, {1: None, 2: None}])
def test_closed_streams_neither_stop_a_run_nor_change_its_exit_code(tmp_path, streams):
    data = write_dataset(tmp_path / "data", SAMPLES, missing=None)
    assert exit_code(extract_arguments(data, tmp_path / "run"), streams) == 0
    assert len(open_run(tmp_path / "run")) == SAMPLES


@pytest.mark.slow
def test_show_into_a_closed_pipe_is_silent_and_into_a_full_disk_is_one_sentence(tmp_path):
    write_run(tmp_path / "run", [make_record(0)])
    said = tmp_path / "said"
    assert exit_code(["show", tmp_path / "run"], {1: "gone", 2: str(said)}) == 0
    assert said.read_text() == ""
    assert exit_code(["show", tmp_path / "run"], {1: "/dev/full", 2: str(said)}) == 2
    assert said.read_text() == "Error: The output could not be written: No space left on device.\n"


@pytest.mark.slow
def test_a_name_that_is_not_utf8_is_one_sentence(tmp_path):
    said = tmp_path / "said"
    assert exit_code(["show", os.fsdecode(bytes(tmp_path / "x") + b"\xff")], {2: str(said)}) == 2
    assert "is not a run folder" in said.read_text()
    assert "Traceback" not in said.read_text()

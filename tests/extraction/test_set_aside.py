"""Samples that kill the process, and samples that were in work when something else killed it."""

import itertools
import os
import signal

import numpy as np
import pytest

import midsight
from faults.command import FORKING
from midsight.errors import BrokenOffError
from midsight.extraction import extract_call, isolated, pipeline
from midsight.store.attempts import Attempts
from midsight.store.writer import RunWriter
from support.pictures import write_csv

ROWS = 7
CALL = {"layers": [0, 7], "max_new_tokens": 2, "batch_size": 3}

DEAD = []


def extract_until_killed(data, checkpoint, out, said):
    """Extracts in this process, which dies when it prepares q4; writes what it found into the file `said`."""
    prepare = extract_call.prepare

    def die_on_one(model, request, samples):
        if any(sample.sample_id == "q4" for sample in samples):
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(model, request, samples)

    extract_call.prepare = pipeline.prepare = die_on_one
    run = midsight.extract(data, model=midsight.load(checkpoint, device="cpu"), out=out, **CALL)
    said.write_text(f"{len(run)} {[failure.sample_id for failure in run.failures()]}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [f"q{n},{n}.png,What is {n}?" for n in range(ROWS)]
    return write_csv(tmp_path_factory.mktemp("deadly"), [(64, 64 + n) for n in range(ROWS)], rows)


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory):
    return midsight.extract(data, model=model, out=tmp_path_factory.mktemp("whole") / "run", **CALL)


@pytest.mark.slow
def test_a_sample_that_kills_twice_is_set_aside_on_the_third_start(data, checkpoint, whole, tmp_path):
    said = tmp_path / "said"

    def start():
        process = FORKING.Process(target=extract_until_killed, args=(data, checkpoint, tmp_path / "run", said))
        process.start()
        process.join()
        return process.exitcode

    assert start() == -signal.SIGKILL
    assert start() == -signal.SIGKILL
    assert len(midsight.open_run(tmp_path / "run").failures()) == 0
    assert start() == 0
    assert said.read_text() == f"{ROWS - 1} ['q4']"
    run = midsight.open_run(tmp_path / "run")
    (failure,) = run.failures()
    assert "Two processes died while they worked on this sample, so it was set aside" in failure.reason
    kept = [n for n in range(ROWS) if n != 4]
    for name in run.vector_columns:
        assert np.allclose(run.matrix(name), whole.matrix(name)[kept], rtol=0, atol=1e-4), name
    assert start() == 0
    assert said.read_text() == f"{ROWS - 1} ['q4']", "set aside for good"


def killed_while_working_on(out, whole, *sample_ids):
    """Leaves the run as a process that was killed from outside does."""
    with RunWriter(out, whole.spec):
        pass
    at_work = Attempts(out, (0, 1)).working_on(sample_ids)
    at_work.__enter__()
    DEAD.append(at_work)  # collected as garbage, it would end as if the process lived


def test_samples_that_were_in_work_come_last_and_one_by_one(data, model, whole, tmp_path, monkeypatch):
    killed_while_working_on(tmp_path / "run", whole, "q1", "q2")
    batches = []
    original = extract_call.extract_call
    monkeypatch.setattr(
        extract_call,
        "extract_call",
        lambda *args: (batches.append([item.sample.sample_id for item in args[2].items]), original(*args))[1],
    )
    run = midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert sorted(itertools.chain(*batches[:-2])) == ["q0", "q3", "q4", "q5", "q6"]
    assert batches[-2:] == [["q1"], ["q2"]]
    assert run.table()["answer_token_ids"] == whole.table()["answer_token_ids"]
    assert Attempts(run.path, (0, 1)).deaths("q1") == 0


def test_a_sample_in_work_at_two_kills_from_outside_is_extracted_all_the_same(data, model, whole, tmp_path):
    """It is set aside, and then gets through in a process of its own."""
    for _ in range(2):
        killed_while_working_on(tmp_path / "run", whole, "q3", "q5")
    seen = []
    run = midsight.extract(data, model=model, out=tmp_path / "run", on_progress=seen.append, **CALL)
    assert run.failures() == []
    assert run.sample_ids() == whole.sample_ids()
    assert run.table()["answer_token_ids"] == whole.table()["answer_token_ids"]
    for name in run.vector_columns:
        assert np.allclose(run.matrix(name), whole.matrix(name), rtol=0, atol=1e-4), name
    assert (seen[-1].done, seen[-1].failed, seen[-1].remaining) == (ROWS, 0, 0)
    assert [failure.sample_id for commit in run.commits for failure in commit.failures] == ["q3", "q5"]


def test_a_failed_sample_that_kills_is_set_aside_also_when_failures_are_tried_again(
    data, model, whole, tmp_path, monkeypatch
):
    with RunWriter(tmp_path / "run", whole.spec) as writer:
        writer.fail(midsight.Failure("q3", 3, "was not there"))
    monkeypatch.setattr("midsight.extraction.run.extract_isolated", lambda *_: None)
    for _ in range(2):
        killed_while_working_on(tmp_path / "run", whole, "q3")
    run = midsight.extract(data, model=model, out=tmp_path / "run", retry_failed=True, **CALL)
    (failure,) = run.failures()
    assert (failure.sample_id, failure.reason[:13]) == ("q3", "Two processes")


def test_on_a_gpu_a_sample_set_aside_stays_so_until_it_is_asked_for(data, model, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("midsight.extraction.run.extract_isolated", lambda *_: None)
    for _ in range(2):
        killed_while_working_on(tmp_path / "run", whole, "q3")
    run = midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert [failure.sample_id for failure in run.failures()] == ["q3"]
    run = midsight.extract(data, model=model, out=tmp_path / "run", retry_failed=True, **CALL)
    assert run.table()["answer_token_ids"] == whole.table()["answer_token_ids"]


def test_a_child_that_dies_or_hangs_costs_the_process_nothing(data, model, monkeypatch):
    from midsight.extraction.request import Request, resolve
    from midsight.samples.tables import read_table

    plan = resolve(Request(answers=False, layers=[0]), model.loaded)
    sample = read_table(data).samples[0]
    assert isinstance(isolated.extract_isolated(model.loaded, plan, sample), midsight.Record)
    monkeypatch.setattr(isolated, "extract_samples", lambda *_: os._exit(1))
    assert isolated.extract_isolated(model.loaded, plan, sample) is None
    monkeypatch.setattr(isolated, "extract_samples", lambda *_: signal.pause())
    assert isolated.extract_isolated(model.loaded, plan, sample, timeout_s=0.2) is None


def test_a_lost_device_blames_no_sample_and_the_run_can_go_on(data, model, whole, tmp_path, monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(extract_call, "extract_call", lost)
    monkeypatch.setattr(extract_call, "still_works", lambda _: False)
    with pytest.raises(BrokenOffError, match=r"The device was lost .*illegal memory access.*; the same call resumes"):
        midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert midsight.open_run(tmp_path / "run").failures() == []
    assert Attempts(tmp_path / "run", (0, 1)).deaths("q0") == 1
    monkeypatch.undo()
    assert midsight.extract(data, model=model, out=tmp_path / "run", **CALL).sample_ids() == whole.sample_ids()

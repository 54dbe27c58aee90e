"""Samples that kill the process, and samples that were in work when something else killed it."""

import faulthandler
import itertools
import os
import signal
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import midsight
from midsight.errors import BrokenOffError
from midsight.extraction import extract_call, fill, isolated
from midsight.extraction.request import Request, resolve
from midsight.extraction.stopping import STOPPING
from midsight.samples.tables import read_table
from midsight.store.attempts import Attempts
from midsight.store.writer import RunWriter
from support.pictures import write_csv

ROWS = 7
CALL = {"layers": [0, 7], "max_new_tokens": 2, "batch_size": 3}

DEAD = []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [f"q{n},{n}.png,What is {n}?" for n in range(ROWS)]
    return write_csv(tmp_path_factory.mktemp("deadly"), [(64, 64 + n) for n in range(ROWS)], rows)


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory):
    return midsight.extract(data, model=model, out=tmp_path_factory.mktemp("whole") / "run", **CALL)


def killed_while_working_on(out, whole, *sample_ids, alone=False):
    """Leaves the run as a process that was killed from outside does."""
    with RunWriter(out, whole.spec):
        pass
    at_work = Attempts(out, (0, 1)).working_on(sample_ids, alone=alone)
    at_work.__enter__()
    DEAD.append(at_work)  # collected as garbage, it would end as if the process lived


@pytest.fixture
def no_forks(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(fill, "can_fork", lambda _: False)
    monkeypatch.setattr(isolated, "can_fork", lambda _: False)


def test_samples_that_were_in_work_come_last_and_one_by_one(data, model, whole, tmp_path, monkeypatch, no_forks):
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
    assert not Attempts(run.path, (0, 1)).is_suspect("q1")


def test_kills_from_outside_fail_no_good_sample(data, model, whole, tmp_path):
    for sample_ids in (["q3", "q5"], ["q3", "q5"], ["q3"], ["q3"]):
        killed_while_working_on(tmp_path / "run", whole, *sample_ids, alone=len(sample_ids) == 1)
    seen = []
    run = midsight.extract(data, model=model, out=tmp_path / "run", progress=seen.append, **CALL)
    assert run.sample_ids() == whole.sample_ids()
    assert run.table()["answer_token_ids"] == whole.table()["answer_token_ids"]
    for name in run.vector_columns:
        assert np.allclose(run.matrix(name), whole.matrix(name), rtol=0, atol=1e-4), name
    assert (seen[-1].done, seen[-1].failed, seen[-1].remaining) == (ROWS, 0, 0)
    assert not [failure for commit in run.commits for failure in commit.failures], "no failure was recorded in between"


def test_three_deaths_alone_set_aside_and_the_next_plain_start_tries_once_more(data, model, whole, tmp_path, no_forks):
    for _ in range(3):
        killed_while_working_on(tmp_path / "run", whole, "q3", alone=True)
    run = midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert [failure.sample_id for failure in run.failures()] == ["q3"]
    assert "q3" not in run.sample_ids()
    run = midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert run.failures() == []
    assert run.table()["answer_token_ids"] == whole.table()["answer_token_ids"]


def test_the_retry_of_a_sample_that_was_set_aside_may_kill_only_once(data, model, whole, tmp_path, no_forks):
    for _ in range(3):
        killed_while_working_on(tmp_path / "run", whole, "q3", alone=True)
    midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    attempts = Attempts(tmp_path / "run", (0, 1))
    attempts.try_again("q3")
    at_work = attempts.working_on(["q3"], alone=True)
    at_work.__enter__()
    DEAD.append(at_work)
    for retry_failed, rows in ((True, ROWS - 1), (False, ROWS - 1), (True, ROWS)):
        run = midsight.extract(data, model=model, out=tmp_path / "run", retry_failed=retry_failed, **CALL)
        assert len(run) == rows, "after that death it is tried when the user asks for it, and not in the next start"


@pytest.fixture
def one(data, model):
    """The arguments of `try_alone` but for the attempts."""
    request = resolve(Request(answers=False, layers=[0]), model.loaded)
    return model.loaded, request, read_table(data).samples[0]


def abort_silently():
    faulthandler.disable()  # this fork's only: its traceback would look like a failure in the log
    os.abort()


def test_a_fork_that_dies_or_hangs_costs_the_process_nothing(one, monkeypatch):
    assert isinstance(isolated.extract_in_fork(*one), midsight.Record)
    for die, death in (
        (abort_silently, isolated.Death(by_itself=True)),
        (lambda: os._exit(5), isolated.Death(by_itself=True)),
        (lambda: os._exit(0), isolated.Death(by_itself=False)),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), isolated.Death(by_itself=False)),
    ):
        monkeypatch.setattr(isolated, "extract_samples", lambda *_, die=die, **__: die())
        assert isolated.extract_in_fork(*one) == death
    monkeypatch.setattr(isolated, "extract_samples", lambda *_, **__: signal.pause())
    assert isolated.extract_in_fork(*one, timeout_s=0.2) is None


@pytest.mark.parametrize("forks", [True, False])
def test_what_is_said_of_an_image_is_also_said_of_one_that_is_tried_alone(one, tmp_path, monkeypatch, forks):
    (tmp_path / "locks").mkdir()
    model, request, sample = one
    Image.fromarray(np.full((32, 32), 4_000, np.uint16)).save(tmp_path / "dark.png")
    dark = replace(sample, images=(tmp_path / "dark.png",))
    monkeypatch.setattr(isolated, "can_fork", lambda _: forks)
    notes = []
    outcome = isolated.try_alone(model, request, dark, Attempts(tmp_path, (0, 1)), notes.append)
    assert isinstance(outcome, midsight.Record)
    assert [note.partition(" stores ")[0] for note in notes] == [f"The image {tmp_path / 'dark.png'}"]


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_to_the_whole_process_group_is_the_parents_and_no_death(one, monkeypatch, number):
    """As Slurm, a closed terminal or Ctrl-C send it."""

    def signalled(*arguments, **options):
        os.kill(os.getpid(), number)
        return extract_call.extract_samples(*arguments, **options)

    monkeypatch.setattr(isolated, "extract_samples", signalled)
    assert isinstance(isolated.extract_in_fork(*one), midsight.Record)


def test_a_fork_that_dies_while_it_sends_its_outcome_is_a_death(one, monkeypatch):
    def send_half(sender, *_):
        os.write(sender.fileno(), struct.pack("!i", 1_000) + b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(isolated, "_extract_into", send_half)
    assert isolated.extract_in_fork(*one) == isolated.Death(by_itself=False)


def kill_forks(monkeypatch, times, number, *, of="q0"):
    """The first forks that try the sample `of` (any if empty) end by the signal `number`; returns who tried what."""
    tried, original, here = [], isolated.extract_in_fork, os.getpid()

    def extract(model, request, samples, **more):
        if os.getpid() != here and (not of or samples[0].sample_id == of) and len(tried) <= times:
            faulthandler.disable()
            os.kill(os.getpid(), number)
        return extract_call.extract_samples(model, request, samples, **more)

    monkeypatch.setattr(isolated, "extract_samples", extract)
    monkeypatch.setattr(isolated, "extract_in_fork", lambda *a: (tried.append(a[2].sample_id), original(*a))[1])
    return tried


def test_two_kills_of_forks_are_forgiven_and_the_third_sets_aside(one, tmp_path, monkeypatch):
    (tmp_path / "locks").mkdir()
    attempts = Attempts(tmp_path, (0, 1))
    tried = kill_forks(monkeypatch, 2, signal.SIGKILL)
    assert isinstance(isolated.try_alone(*one, attempts=attempts), midsight.Record)
    assert tried == ["q0"] * 3
    attempts.clear(["q0"])
    tried = kill_forks(monkeypatch, 99, signal.SIGKILL)
    assert isinstance(isolated.try_alone(*one, attempts=attempts), midsight.Failure)
    assert attempts.is_set_aside("q0")


def test_a_crash_counts_only_if_a_harmless_sample_survives_a_fork(one, tmp_path, monkeypatch):
    (tmp_path / "locks").mkdir()
    attempts = Attempts(tmp_path, (0, 1))
    tried = kill_forks(monkeypatch, 99, signal.SIGABRT, of="")
    assert isinstance(isolated.try_alone(*one, attempts=attempts), midsight.Record), "forks are at fault"
    assert tried == ["q0", "control"]
    assert not attempts.is_set_aside("q0")
    kill_forks(monkeypatch, 99, signal.SIGABRT)
    assert isinstance(isolated.try_alone(*one, attempts=attempts), midsight.Failure)
    assert attempts.is_set_aside("q0")


def test_a_lost_device_blames_no_sample_and_the_run_can_go_on(data, model, whole, tmp_path, monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(extract_call, "extract_call", lost)
    monkeypatch.setattr(extract_call, "still_works", lambda _: False)
    with pytest.raises(BrokenOffError, match=r"The device was lost .*illegal memory access.*; the same call resumes"):
        midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert midsight.open_run(tmp_path / "run").failures() == []
    assert Attempts(tmp_path / "run", (0, 1)).is_suspect("q0")
    monkeypatch.undo()
    assert midsight.extract(data, model=model, out=tmp_path / "run", **CALL).sample_ids() == whole.sample_ids()

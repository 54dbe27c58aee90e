"""Chat templates that ask for the date: a run's prompts are those of its first start, whenever it is resumed."""

from datetime import datetime

import numpy as np
import pytest

import midsight
from midsight.check.processor import processor_inputs
from midsight.extraction.display import Silent
from midsight.extraction.job import make_job
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import Request, resolve
from midsight.extraction.run_job import run_job
from midsight.extraction.task import make_task
from midsight.prompts.chat_template import ChatTemplate
from midsight.samples.sample import Sample
from midsight.store.reader import open_run
from midsight.testing.phi4_multimodal import CHAT_TEMPLATE
from support.pictures import picture, write_csv

DATED = "<|system|>It is {{ strftime_now('%d %b %Y, %H:%M') }}.<|end|>" + CHAT_TEMPLATE
EVENING, MORNING = datetime(2026, 1, 31, 23, 59, 58), datetime(2026, 2, 1, 8, 30)
IN_EVENING = "<|system|>It is 31 Jan 2026, 23:59.<|end|><|user|>"


class Clock(datetime):
    """A clock that tells what it is set to."""

    present: datetime = EVENING

    @classmethod
    def now(cls, tz=None):
        return cls.present


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("midsight.prompts.chat_template.datetime", Clock)
    monkeypatch.setattr(Clock, "present", EVENING)
    return Clock


@pytest.fixture
def call(tmp_path):
    (tmp_path / "dated.jinja").write_text(DATED)
    rows = [f"q{n},{n}.png,What is {n}?" for n in range(8)]
    data = write_csv(tmp_path, [(64, 48)] * 8, rows)
    options = {"layers": [0, 7], "answers": False, "share": False, "prompt_template": tmp_path / "dated.jinja"}
    return {"data": data, **options}


def extract(call, model, out, **options):
    return midsight.extract(**call, model=model, out=out, batch_size=1, progress=None, **options)


def assert_same_vectors(run, other):
    for name in other.vector_columns:
        assert np.array_equal(run.matrix(name), other.matrix(name)), name


@pytest.mark.slow
def test_a_run_that_is_resumed_on_another_day_has_the_prompts_of_its_first(call, model, clock, tmp_path):
    whole = extract(call, model, tmp_path / "whole")
    begun = extract(call, model, tmp_path / "run", limit=2)
    assert begun.spec.prompt.time == "2026-01-31T23:59:58"
    clock.present = MORNING
    resumed = extract(call, model, tmp_path / "run")
    assert resumed.spec.prompt == begun.spec.prompt
    assert str(resumed.spec.prompt.rendered).startswith(IN_EVENING)
    assert_same_vectors(resumed, whole)
    other = extract(call, model, tmp_path / "other")
    assert "It is 01 Feb 2026, 08:30." in str(other.spec.prompt.rendered)
    name = other.vector_columns[-1]
    assert not np.array_equal(other.matrix(name), whole.matrix(name))


@pytest.mark.slow
def test_a_run_without_a_time_is_resumed_at_the_present_one(call, model, clock, tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(ChatTemplate, "at", lambda template, _time: template)
        begun = extract(call, model, tmp_path / "run", limit=2)
    clock.present = MORNING
    resumed = extract(call, model, tmp_path / "run")
    assert resumed.spec == begun.spec
    assert resumed.spec.prompt.time is None
    assert len(resumed) == 8
    other = extract(call, model, tmp_path / "other")
    name = other.vector_columns[-1]
    assert np.array_equal(resumed.matrix(name)[2:], other.matrix(name)[2:])


@pytest.mark.slow
def test_shards_that_start_at_different_times_have_the_prompts_of_the_first(call, model, clock, tmp_path):
    whole = extract(call, model, tmp_path / "whole")
    jobs = []
    for number, clock.present in enumerate((EVENING, MORNING)):
        task = make_task(**call, model=None, out=tmp_path / "run", shard=(number, 2))
        jobs.append(make_job(task, model.loaded))
    for job in jobs:
        run_job(job, batch_size=1, keep_going=False, commit_seconds=60.0, shown=Silent())
    run = open_run(tmp_path / "run")
    assert {commit.shard for commit in run.commits} == {(0, 2), (1, 2)}
    assert run.spec.prompt.time == "2026-01-31T23:59:58"
    assert_same_vectors(run, whole)


def test_all_prompts_of_a_run_tell_one_time(call, model, clock):
    resolved = resolve(Request(prompt_template=call["prompt_template"]), model.loaded)
    clock.present = MORNING
    sample = Sample("s", 0, (picture((64, 48), 0),), "What?")
    (item,) = prepare(model.loaded, resolved, [sample])
    inputs = processor_inputs(model.loaded, resolved, sample)
    assert isinstance(item, PreparedSample)
    assert inputs is not None
    assert inputs["input_ids"][0].tolist() == [*item.prompt.token_ids]
    assert item.prompt.text.startswith(IN_EVENING)


def test_a_template_that_does_not_ask_has_no_time():
    assert ChatTemplate("folder", CHAT_TEMPLATE).at(None).time is None
    assert ChatTemplate("raw", None).at("2026-01-31T23:59:58").time is None
    assert ChatTemplate("folder", DATED).at("2026-01-31T23:59:58").time == "2026-01-31T23:59:58"

"""What a dead process leaves of its samples in progress, and what the next process does with it."""

import pytest

from midsight.errors import BrokenOffError, CommitError
from midsight.store.attempts import Attempts
from midsight.store.files import LOCKS

DEAD = []


@pytest.fixture
def run(tmp_path):
    (tmp_path / LOCKS).mkdir()
    return tmp_path


def die_on(run, *sample_ids, shard=(0, 1)):
    """A process of that shard dies while the samples are in progress."""
    at_work = Attempts(run, shard).working_on(sample_ids)
    at_work.__enter__()
    DEAD.append(at_work)  # garbage collection would end the block as if the process lived


def deaths(run, *sample_ids, shard=(0, 1)):
    attempts = Attempts(run, shard)
    return [attempts.deaths(sample_id) for sample_id in sample_ids]


def test_a_death_counts_once_however_often_it_is_read(run):
    assert deaths(run, "a") == [0]
    die_on(run, "a", "b")
    assert deaths(run, "a", "b", "c") == deaths(run, "a", "b", "c") == [1, 1, 0]
    die_on(run, "a")
    assert deaths(run, "a", "b") == [2, 1]


def test_a_sample_that_succeeds_is_cleared_for_good(run):
    die_on(run, "a", "b")
    attempts = Attempts(run, (0, 1))
    with attempts.working_on(["a"]):
        pass
    assert attempts.deaths("a") == 1, "a sample that was only prepared has not succeeded"
    attempts.clear(["a"])
    assert attempts.deaths("a") == 0
    assert deaths(run, "a", "b") == [0, 1]
    attempts.clear(["b"])
    assert deaths(run, "a", "b") == [0, 0]


def test_an_error_or_a_stop_is_not_a_death_and_a_lost_device_is(run):
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), Attempts(run, (0, 1)).working_on(["a"]):
            raise error
        assert deaths(run, "a") == [0]
    with pytest.raises(BrokenOffError), Attempts(run, (0, 1)).working_on(["a"]):
        raise BrokenOffError
    assert deaths(run, "a") == [1]


def test_processes_of_other_shards_may_be_alive_and_those_of_another_number_of_shards_are_dead(run):
    die_on(run, "a", shard=(0, 2))
    die_on(run, "b", shard=(1, 2))
    assert deaths(run, "a", "b", shard=(0, 2)) == [1, 0]
    assert deaths(run, "a", "b", shard=(2, 3)) == [1, 1]


@pytest.mark.parametrize("text", ["", "[]", '{"deaths": {"a": "x"}, "in_progress": []}', '{"deaths": {}}', "\x00"])
def test_a_file_that_cannot_be_read_counts_no_deaths(run, text):
    (run / LOCKS / "0-of-1.attempts").write_text(text)
    assert deaths(run, "a") == [0]


def test_a_disk_that_refuses_is_one_sentence_and_resumable(tmp_path):
    with pytest.raises(CommitError, match="could not be written") as caught:
        die_on(tmp_path / "gone", "a")
    assert caught.value.resumable


def test_threads_may_work_on_samples_at_the_same_time(run):
    attempts = Attempts(run, (0, 1))
    model = attempts.working_on(["a", "b"])
    model.__enter__()
    with attempts.working_on(["b", "c"]):
        pass
    assert deaths(run, "a", "b", "c") == [1, 1, 0], "the samples still in progress, and nothing else"
    model.__exit__(None, None, None)
    assert deaths(run, "a", "b", "c") == [0, 0, 0]

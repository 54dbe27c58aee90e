"""What a dead process leaves of its samples in work, and whom the next process suspects."""

import pytest

from midsight.errors import BrokenOffError, CommitError
from midsight.store.attempts import Attempts, note_seen_death, read_suspicions, working_path
from midsight.store.files import LOCKS

DEAD = []
SHARD = (0, 1)


@pytest.fixture
def run(tmp_path):
    (tmp_path / LOCKS).mkdir()
    return tmp_path


def die_on(run, *sample_ids, shard=SHARD, alone=False):
    """A process of that shard dies while the samples are in work."""
    at_work = Attempts(run, shard).working_on(sample_ids, alone=alone)
    at_work.__enter__()
    DEAD.append(at_work)  # garbage collection would end the block as if the process lived


def suspects(run, shard=SHARD):
    return dict(read_suspicions(run, shard).alone_deaths)


def test_a_death_in_a_batch_makes_suspects_and_never_more(run):
    assert suspects(run) == {}
    for _ in range(5):
        die_on(run, "a", "b")
        assert suspects(run) == suspects(run) == {"a": 0, "b": 0}
    attempts = Attempts(run, SHARD)
    assert [attempts.is_suspect(name) for name in "abc"] == [True, True, False]
    assert not attempts.is_set_aside("a")


def test_the_third_death_alone_sets_a_sample_aside(run):
    die_on(run, "a", "b")
    for deaths in (1, 2, 3):
        die_on(run, "a", alone=True)
        assert suspects(run) == {"a": deaths, "b": 0}
    attempts = Attempts(run, SHARD)
    assert attempts.is_set_aside("a")
    assert attempts.died_last == {"a"}
    assert attempts.once_more() == {"a"}
    assert Attempts(run, SHARD).died_last == frozenset()
    assert suspects(run) == {"a": 3, "b": 0}, "a death counts once, however often it is read"


def test_one_death_that_a_surviving_process_saw_is_enough_if_the_sample_was_alone(run):
    die_on(run, "a", alone=True)
    note_seen_death(working_path(run, SHARD))
    assert Attempts(run, SHARD).is_set_aside("a")
    die_on(run, "b", "c")
    note_seen_death(working_path(run, SHARD))
    assert [Attempts(run, SHARD).is_set_aside(name) for name in "abc"] == [True, False, False]


def test_a_sample_that_was_set_aside_gets_one_more_try(run):
    attempts = Attempts(run, SHARD)
    attempts.count_death("a", by_itself=False)
    assert not attempts.is_set_aside("a")
    attempts.count_death("a", by_itself=True)
    assert Attempts(run, SHARD).once_more() == {"a"}
    attempts.try_again("a")
    assert Attempts(run, SHARD).once_more() == set()
    assert Attempts(run, SHARD).is_set_aside("a")
    attempts.clear(["a"])
    assert suspects(run) == {}
    attempts.count_death("a", by_itself=True)
    assert Attempts(run, SHARD).once_more() == {"a"}, "success forgets everything"


def test_an_error_or_a_stop_is_not_a_death_and_a_lost_device_is(run):
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), Attempts(run, SHARD).working_on(["a"]):
            raise error
        assert suspects(run) == {}
    attempts = Attempts(run, SHARD)
    with pytest.raises(BrokenOffError), attempts.working_on(["a"]):
        raise BrokenOffError
    attempts.end()
    assert suspects(run) == {"a": 0}


def test_after_the_end_no_thread_puts_a_sample_in_work(run):
    attempts = Attempts(run, SHARD)
    with attempts.working_on(["a"]):
        attempts.end()
        assert suspects(run) == {}
        with attempts.working_on(["b"]):
            assert suspects(run) == {}
    assert not working_path(run, SHARD).exists()


def test_processes_of_other_shards_may_be_alive_and_those_of_another_number_of_shards_are_dead(run):
    die_on(run, "a", shard=(0, 2))
    die_on(run, "b", shard=(1, 2), alone=True)
    assert suspects(run, (0, 2)) == {"a": 0}
    for _ in range(3):
        Attempts(run, (2, 3))
        assert suspects(run, (2, 3)) == {"a": 0, "b": 1}


@pytest.mark.parametrize("suffix", ["attempts", "working", "seen"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"alone_deaths": {"a": "x"}, "tried_again": []}',
        '{"alone_deaths": {"a": 1e999}, "tried_again": []}',
        '{"samples": "a", "alone": true}',
        '{"samples": [["a"]], "alone": true}',
        '{"samples": {}}',
        "[" * 100_000,
        "\x00",
        "9" * 5_000,
    ],
)
def test_a_file_that_cannot_be_read_suspects_nobody(run, suffix, text):
    (run / LOCKS / f"0-of-1.{suffix}").write_text(text)
    assert suspects(run) == {}
    assert Attempts(run, SHARD).died_last == frozenset()


def test_a_disk_that_refuses_is_one_sentence_and_resumable(tmp_path):
    with pytest.raises(CommitError, match="could not be written") as caught:
        die_on(tmp_path / "gone", "a")
    assert caught.value.resumable


def test_threads_may_work_on_samples_at_the_same_time(run):
    attempts = Attempts(run, SHARD)
    model = attempts.working_on(["a", "b"])
    model.__enter__()
    with attempts.working_on(["b", "c"]):
        pass
    assert suspects(run) == {"a": 0, "b": 0}, "the samples still in work, and nothing else"
    model.__exit__(None, None, None)
    assert suspects(run) == {}

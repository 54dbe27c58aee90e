import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from midsight.errors import CommitError, MidsightError, RunError
from midsight.store import RunWriter, files, lock, open_run
from midsight.store import writer as writer_module
from midsight.store.lock import take_lock
from midsight.store.place import validate_place
from midsight.store.verify import verify_run
from support.made_up import QUERY_0, files_of, make_failure, make_record, make_spec, write_run


def command_of_this_process():
    """As an error quotes it."""
    command = shlex.join(psutil.Process().cmdline())
    return command if len(command) <= lock.LONGEST_COMMAND else f"{command[: lock.LONGEST_COMMAND]} ..."


def run_python(code, *arguments):
    """A process that runs `code` with the records of made_up.py at hand."""
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": tests})


def assert_holds(path, count):
    """The run holds the rows 0 to `count` - 1, each once, as they were made."""
    run = open_run(path)
    assert run.sample_ids() == [f"s{i}" for i in range(count)]
    expected = np.array([make_record(i).vectors[QUERY_0] for i in range(count)], np.float32).reshape(count, 8)
    assert run.matrix(QUERY_0).tobytes() == expected.tobytes()


def test_a_commit_holds_whole_images(tmp_path):
    write_run(tmp_path, [make_record(i) for i in range(10)], commit_seconds=0)
    run = open_run(tmp_path)
    commits = [replace(run, commits=(commit,)) for commit in run.commits]
    images = [set(commit.table().column("image_id").to_pylist()) for commit in commits]
    assert images == [{"image-0"}, {"image-1"}, {"image-2"}, {"image-3"}]


def test_bytes_make_a_commit_due(tmp_path):
    write_run(tmp_path, [make_record(i) for i in range(9)], commit_bytes=1_000)
    assert [commit.rows for commit in open_run(tmp_path).commits] == [6, 3]


def test_an_endless_image_is_cut_at_twice_the_bytes(tmp_path):
    write_run(tmp_path, [make_record(i, image_id="one") for i in range(30)], commit_bytes=1_000)
    rows = [commit.rows for commit in open_run(tmp_path).commits]
    assert sum(rows) == 30
    assert len(rows) > 1
    write_run(tmp_path / "whole", [make_record(i, image_id="one") for i in range(30)], commit_bytes=10_000)
    assert [commit.rows for commit in open_run(tmp_path / "whole").commits] == [30]


def test_nothing_is_due_before_its_time(tmp_path):
    with RunWriter(tmp_path, make_spec(), commit_seconds=0.2) as writer:
        time.sleep(0.25)  # time counts from the first row
        writer.add(make_record(0))
        writer.add(make_record(3))
        assert len(open_run(tmp_path)) == 0
        time.sleep(0.25)
        writer.add(make_record(6))
        assert len(open_run(tmp_path)) == 2
    assert len(open_run(tmp_path)) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_is_finished_is_kept_when_the_work_breaks_off(tmp_path, error):
    def records():
        yield make_record(0)
        raise error

    with pytest.raises(error):
        write_run(tmp_path, records())
    run = open_run(tmp_path)
    assert run.sample_ids() == ["s0"]
    write_run(tmp_path, [make_record(1)])
    assert_holds(tmp_path, 2)


def test_a_resumed_run_continues(tmp_path):
    write_run(tmp_path, [make_record(i) for i in range(4)])
    with RunWriter(tmp_path, make_spec()) as writer:
        assert writer.done == {"s0", "s1", "s2", "s3"}
        writer.add(make_record(4))
        assert "s4" in writer.done
    assert_holds(tmp_path, 5)
    assert [file.name for file in files_of(tmp_path, ".parquet")] == ["0-of-1-000000.parquet", "0-of-1-000001.parquet"]


def test_a_sample_is_stored_once(tmp_path):
    write_run(tmp_path, [make_record(0)])
    with RunWriter(tmp_path, make_spec()) as writer:
        with pytest.raises(RunError, match=r"'s0' is stored in .* already"):
            writer.add(make_record(0))
        with pytest.raises(RunError, match=r"'s0' is stored in .* already"):
            writer.fail(make_failure(0))
    assert_holds(tmp_path, 1)


def test_a_part_without_its_record_does_not_exist(tmp_path):
    write_run(tmp_path, [make_record(i) for i in range(6)], commit_seconds=0)
    last = files_of(tmp_path, ".json")[-1]
    last.unlink()
    assert_holds(tmp_path, 3)
    with RunWriter(tmp_path, make_spec()) as writer:
        assert writer.done == {"s0", "s1", "s2"}
        assert len(files_of(tmp_path, ".parquet")) == 1
        for i in range(3, 8):
            writer.add(make_record(i))
    assert last.exists()
    assert_holds(tmp_path, 8)


def test_temporary_files_are_ignored_and_removed(tmp_path):
    write_run(tmp_path, [make_record(0)])
    leftovers = [
        tmp_path / "parts" / f".0-of-{n}-000007.{suffix}.tmp" for n in (1, 2) for suffix in ("parquet", "json")
    ]
    for file in leftovers:
        file.write_bytes(b"half")
    assert_holds(tmp_path, 1)
    write_run(tmp_path, [make_record(1)])
    assert [file.exists() for file in leftovers] == [False, False, True, True]
    assert_holds(tmp_path, 2)


class Disk:
    """A disk that works for a number of steps (writes to disk and renames), then raises."""

    def __init__(self, monkeypatch, steps, error, *, once):
        self.steps, self.error, self.once = steps, error, once
        fsync, replace = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda file: (self.step(), fsync(file))[1])
        monkeypatch.setattr(Path, "replace", lambda source, target: (self.step(), replace(source, target))[1])

    def step(self):
        self.steps -= 1
        if self.steps == -1 or (self.steps < 0 and not self.once):
            raise self.error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("steps", range(3, 16))
def test_a_full_disk_leaves_what_was_committed(tmp_path, monkeypatch, steps):
    committed = max(0, (steps - 3) // 6) * 3  # run.json takes three steps, then each commit six
    with monkeypatch.context() as patched:
        Disk(patched, steps, FULL, once=False)
        with pytest.raises(
            CommitError, match=r"commit \d\): No space left on device; what was committed before is intact"
        ):
            write_run(tmp_path, [make_record(i) for i in range(9)], commit_seconds=0)
    # The last step only makes a rename survive a power cut: the record is there before it.
    assert_holds(tmp_path, committed + (3 if (steps - 3) % 6 == 5 else 0))
    assert not list((tmp_path / "parts").glob(".*"))
    with RunWriter(tmp_path, make_spec()) as writer:
        for i in range(9):
            if f"s{i}" not in writer.done:
                writer.add(make_record(i))
    assert_holds(tmp_path, 9)


@pytest.mark.parametrize("steps", range(3, 16))
def test_an_interrupt_within_a_commit_neither_loses_nor_doubles_rows(tmp_path, monkeypatch, steps):
    with monkeypatch.context() as patched:
        Disk(patched, steps, KeyboardInterrupt(), once=True)
        with pytest.raises(KeyboardInterrupt):
            write_run(tmp_path, [make_record(i) for i in range(9)], commit_seconds=0)
    count = len(open_run(tmp_path))
    assert count in (3, 6, 9)
    assert_holds(tmp_path, count)


def test_a_disk_that_is_full_from_the_start_is_reported(tmp_path, monkeypatch):
    Disk(monkeypatch, 0, FULL, once=False)
    with pytest.raises(RunError, match="could not be opened for writing: No space left on device"):
        write_run(tmp_path, [])
    assert not (tmp_path / "run.json").exists()


def test_a_path_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not be opened for writing"):
        write_run(tmp_path / "file", [])


def test_parts_without_run_json_are_not_written_over(tmp_path):
    write_run(tmp_path, [make_record(0)])
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match=r"has parts but no run\.json"):
        write_run(tmp_path, [make_record(1)])


def test_a_start_that_hangs_is_waited_for_and_then_named(tmp_path, monkeypatch):
    write_run(tmp_path, [make_record(0)])
    monkeypatch.setattr(writer_module, "START_WAIT_S", 0.1)
    start = tmp_path / "locks" / "run.lock"
    sentence = rf"The start of a writer of .* is taken by process {os.getpid()} on \S+ since 2.*; wait until it ends"
    with take_lock(start), pytest.raises(RunError, match=sentence):
        write_run(tmp_path, [])
    for text in (
        "[1]",
        '{"process": [], "host": 1}',
        "[" * 100_000,
        "\xff",
        '{"process": 1, "host": "\\u001b", "since": ""}',
    ):
        with take_lock(start):
            start.write_text(text)
            with pytest.raises(RunError, match="is taken by another process"):
                write_run(tmp_path, [])
    write_run(tmp_path, [make_record(1)])


def test_what_systems_put_into_folders_is_nobodys_file(tmp_path):
    for name in (".DS_Store", "._parts", ".nfs000000000123", "lost+found"):
        (tmp_path / name).touch()
    validate_place(tmp_path)
    (tmp_path / ".bashrc").touch()
    with pytest.raises(RunError, match=r"holds other files, like \.bashrc, and is not a run"):
        validate_place(tmp_path)


def test_files_that_macos_puts_beside_a_runs_files_are_ignored(tmp_path):
    write_run(tmp_path, [make_record(0)])
    for folder in ("parts", "locks"):
        for file in [*(tmp_path / folder).iterdir()]:
            file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    for name in ("parts", "locks", "run.json"):
        (tmp_path / f"._{name}").write_bytes(b"\0\5\x16\7")
    assert_holds(tmp_path, 1)
    assert verify_run(tmp_path).findings == ()
    write_run(tmp_path, [make_record(1)])
    assert_holds(tmp_path, 2)


@pytest.mark.parametrize(("name", "sentence"), [("link", "is a link to something"), ("\udcff", "is not UTF-8")])
def test_a_place_that_cannot_be_a_folder_is_one_sentence(tmp_path, name, sentence):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(RunError, match=sentence):
        validate_place(tmp_path / name)


def test_a_long_image_is_committed_after_two_intervals(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now[0])
    with RunWriter(tmp_path, make_spec(), commit_seconds=10) as writer:
        for i in range(300):
            writer.add(make_record(i, image_id="one"))
            now[0] += 1
        assert len(open_run(tmp_path)) == 280


def test_rows_are_committed_after_two_intervals_though_no_sample_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "SHORTEST_S", 0.1)
    with RunWriter(tmp_path, make_spec(), commit_seconds=0.05) as writer:
        with monkeypatch.context() as full:
            Disk(full, 0, FULL, once=False)
            writer.add(make_record(0))
            time.sleep(0.5)
        ends = time.monotonic() + 10
        while not len(open_run(tmp_path)) and time.monotonic() < ends:
            time.sleep(0.02)
        assert_holds(tmp_path, 1)
        writer.add(make_record(1))
    assert_holds(tmp_path, 2)


def test_a_run_that_was_deleted_and_started_again_is_left_alone_by_its_first_writer(tmp_path):
    first = RunWriter(tmp_path / "run", make_spec())
    first.__enter__()
    first.add(make_record(0))
    shutil.rmtree(tmp_path / "run")
    with RunWriter(tmp_path / "run", make_spec()) as second:
        second.add(make_record(0))
        with pytest.raises(CommitError, match=r"is written by another process too.*; this process stops without touch"):
            first.commit()
        with second.attempts.working_on(["s1"]):
            in_work = [*(tmp_path / "run" / "locks").glob("*.working")]
            with pytest.raises(CommitError, match="is written by another process too"):
                first.attempts.end()
            assert in_work[0].exists()
        second.add(make_record(1))
    with pytest.raises(CommitError, match="is written by another process too"):
        first.__exit__()
    assert_holds(tmp_path / "run", 2)


def test_a_record_that_a_second_writer_made_is_never_written_over(tmp_path, monkeypatch):
    """As on a network file system that has lost the lock."""
    first = RunWriter(tmp_path, make_spec())
    first.__enter__()
    first.add(make_record(0))
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: None)
    write_run(tmp_path, [make_record(i) for i in range(2)])
    with pytest.raises(CommitError, match="is written by another process too"):
        first.__exit__()
    assert_holds(tmp_path, 2)


def test_a_record_whose_flush_failed_is_not_written_again_with_other_rows(tmp_path, monkeypatch):
    with RunWriter(tmp_path, make_spec()) as writer:
        writer.add(make_record(0))
        with monkeypatch.context() as patched:
            Disk(patched, 5, FULL, once=True)  # the record is there, and flushing the folder fails
            with pytest.raises(CommitError):
                writer.commit()
        writer.add(make_record(1))
        with monkeypatch.context() as patched:
            Disk(patched, 3, FULL, once=False)  # the next record cannot be written
            with pytest.raises(CommitError):
                writer.commit()
        assert_holds(tmp_path, 1)
    assert_holds(tmp_path, 2)


def stopped_while_it_starts(path):
    """A child that enters a writer, stops itself under run.lock, and later stores a row."""
    child = os.fork()
    if not child:
        code = 1
        try:
            taken = take_lock

            def take_and_stop(file, **options):
                held = taken(file, **options)
                if file.name == "run.lock":
                    os.kill(os.getpid(), signal.SIGSTOP)
                return held

            writer_module.take_lock = take_and_stop
            write_run(path, [make_record(0)])
            code = 0
        finally:
            os._exit(code)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    return child


def test_a_start_that_is_stopped_is_waited_for_and_named_and_goes_on_later(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "START_WAIT_S", 0.5)
    child = stopped_while_it_starts(tmp_path)
    try:
        began = time.monotonic()
        with pytest.raises(RunError) as refused:
            write_run(tmp_path, [make_record(1)])
        assert time.monotonic() - began >= 0.5
    finally:
        os.kill(child, signal.SIGCONT)
        ended = os.waitpid(child, 0)[1]
    sentence = (
        rf"The start of a writer of {re.escape(str(tmp_path))} is taken by process {child} on {os.uname().nodename} "
        rf"since 2\S+ \({re.escape(command_of_this_process())}\), which is stopped; "
        rf"continue it with `kill -CONT {child}`, or end it with `kill -9 {child}`\."
    )
    assert re.fullmatch(sentence, str(refused.value)), refused.value
    assert ended == 0
    write_run(tmp_path, [make_record(1)])
    assert_holds(tmp_path, 2)


def test_a_process_with_the_number_of_a_dead_holder_is_not_taken_for_it(tmp_path):
    (tmp_path / "locks").mkdir()
    held = take_lock(tmp_path / "locks" / "run.lock")
    (tmp_path / "locks" / "run.lock").write_text('{"process": 1, "host": "here", "since": "2026"}')
    with held, pytest.raises(RunError, match=r"by process 1 on here since 2026; wait until it ends, or stop it\.$"):
        take_lock(tmp_path / "locks" / "run.lock", wait_s=0)


def test_a_clock_that_is_set_back_does_not_change_which_failure_is_the_last(tmp_path, monkeypatch):
    for attempt, time_ in enumerate(("2026-11-28T12:00:00.000000+00:00", "2026-11-28T11:00:00.000000+00:00")):
        monkeypatch.setattr(writer_module, "utc_now", lambda time_=time_: time_)
        with RunWriter(tmp_path, make_spec(), retry_failed=True) as writer:
            writer.fail(make_failure(0, f"attempt {attempt}"))
    assert open_run(tmp_path).failures() == [make_failure(0, "attempt 1")]


@pytest.mark.usefixtures("no_waiting")
def test_a_second_writer_is_refused_by_name(tmp_path):
    with RunWriter(tmp_path, make_spec()) as writer:
        with pytest.raises(
            RunError, match=rf"shard 0-of-1 of .* is being written by process {os.getpid()} on \S+ since 2"
        ):
            write_run(tmp_path, [])
        writer.add(make_record(0))
    write_run(tmp_path, [make_record(1)])
    assert_holds(tmp_path, 2)


def test_shards_of_the_same_number_of_shards_write_at_the_same_time(tmp_path):
    with RunWriter(tmp_path, make_spec(), shard=(0, 2)) as even, RunWriter(tmp_path, make_spec(), shard=(1, 2)) as odd:
        for i in range(6):
            (odd if i % 2 else even).add(make_record(i))
    assert_holds(tmp_path, 6)
    with RunWriter(tmp_path, make_spec()) as writer:
        assert len(writer.done) == 6


@pytest.mark.usefixtures("no_waiting")
def test_shards_of_another_number_of_shards_are_refused(tmp_path):
    with RunWriter(tmp_path, make_spec(), shard=(1, 2)), pytest.raises(RunError, match=r"shard 1-of-2 of .* is being"):
        write_run(tmp_path, [], shard=(0, 3))
    write_run(tmp_path, [], shard=(0, 3))


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_a_shard_that_does_not_exist_is_refused(tmp_path, shard):
    sentence = f"shard={shard} does not exist; N shards have the numbers 0 to N-1."
    with pytest.raises(MidsightError, match=re.escape(sentence)):
        RunWriter(tmp_path, make_spec(), shard=shard)


def test_without_flock_a_run_is_read_and_not_written(tmp_path, monkeypatch):
    write_run(tmp_path, [make_record(0)])
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(RunError) as caught:
        write_run(tmp_path, [make_record(1)])
    assert str(caught.value) == (
        f"{tmp_path}/locks/run.lock cannot be locked because Windows has no flock; write the run on Linux or macOS."
    )
    assert_holds(tmp_path, 1)


def test_the_store_is_imported_without_fcntl():
    process = run_python(
        """
        import sys
        sys.modules["fcntl"] = None
        import midsight.store, midsight.store.compact, midsight.store.verify
        print("imported")
        """
    )
    assert process.communicate()[0] == b"imported\n"


@pytest.mark.slow
def test_a_lock_dies_with_its_process_though_a_forked_worker_lives(tmp_path):
    process = run_python(
        """
        import os, sys, time
        from support.made_up import make_spec
        from midsight.store import RunWriter
        with RunWriter(sys.argv[1], make_spec()):
            worker = os.fork()
            if worker:
                print(worker, flush=True)
            time.sleep(60)
        """,
        tmp_path,
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(RunError, match=f"process {process.pid} on"):
            write_run(tmp_path, [])
        process.kill()
        process.wait()
        os.kill(worker, 0)
        write_run(tmp_path, [make_record(0)])
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()
    assert_holds(tmp_path, 1)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_holds_each_row_once(tmp_path):
    code = """
        import sys, time
        from support.made_up import make_failure, make_record, make_spec
        from midsight.store import RunWriter
        limit = int(sys.argv[2])
        with RunWriter(sys.argv[1], make_spec(), commit_seconds=0) as writer:
            print(len(writer.done), flush=True)
            for i in range(200):
                if i == limit:
                    time.sleep(60)
                if f"s{i}" not in writer.done:
                    writer.add(make_record(i))
            writer.fail(make_failure(200))
        """
    random = np.random.default_rng(0)
    for limit in (70, 140, 199):  # none of these comes to its end by itself
        process = run_python(code, tmp_path, limit)
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + random.uniform(0.02, 0.15)
        while time.monotonic() < deadline:
            run = open_run(tmp_path)  # read while it is being written
            assert run.matrix(QUERY_0).shape == (len(run), 8)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    last = run_python(code, tmp_path, -1)
    last.communicate()
    assert last.returncode == 0
    assert_holds(tmp_path, 200)
    assert open_run(tmp_path).failures() == [make_failure(200)]


def test_a_run_is_read_while_it_is_written(tmp_path):
    with RunWriter(tmp_path, make_spec()) as writer:
        assert len(open_run(tmp_path)) == 0
        writer.add(make_record(0))
        writer.commit()
        writer.add(make_record(1))
        early = open_run(tmp_path)
        assert early.sample_ids() == ["s0"]
        writer.commit()
        assert early.sample_ids() == ["s0"]
        assert early.table().num_rows == len(early) == 1
        assert_holds(tmp_path, 2)


def test_failed_samples_stay_failed_until_retried(tmp_path):
    with RunWriter(tmp_path, make_spec()) as writer:
        writer.fail(make_failure(1, "first"))
        writer.fail(make_failure(0, "first"))
        writer.add(make_record(2))
    assert open_run(tmp_path).failures() == [make_failure(0, "first"), make_failure(1, "first")]
    with RunWriter(tmp_path, make_spec()) as writer:
        assert writer.done == {"s0", "s1", "s2"}
    with RunWriter(tmp_path, make_spec(), retry_failed=True) as writer:
        assert writer.done == {"s2"}
        writer.add(make_record(0))
        with pytest.raises(RunError, match="'s0' is stored"):
            writer.add(make_record(0))
        writer.fail(make_failure(1, "second"))
        assert writer.done == {"s0", "s1", "s2"}
    run = open_run(tmp_path)
    assert run.sample_ids() == ["s0", "s2"]
    assert run.failures() == [make_failure(1, "second")]
    with RunWriter(tmp_path, make_spec()) as writer:
        assert writer.done == {"s0", "s1", "s2"}


def test_failures_alone_make_a_commit_without_a_part(tmp_path):
    with RunWriter(tmp_path, make_spec(), commit_seconds=0) as writer:
        writer.fail(make_failure(0, "Zürich \ud800"))
        writer.fail(make_failure(1))
        assert open_run(tmp_path).failures() == [make_failure(0, "Zürich \ud800")]
    run = open_run(tmp_path)
    assert [(commit.part, commit.rows) for commit in run.commits] == [(None, 0), (None, 0)]
    assert files_of(tmp_path, ".parquet") == []
    write_run(tmp_path, [make_record(2)])
    assert files_of(tmp_path, ".parquet")[0].stem == "0-of-1-000002"


def test_an_unstorable_sample_leaves_the_others(tmp_path):
    with RunWriter(tmp_path, make_spec()) as writer:
        writer.add(make_record(0))
        with pytest.raises(MidsightError, match="year of sample 's1'"):
            writer.add(make_record(1, extras={"year": "soon"}))
        assert "s1" not in writer.done
        writer.fail(make_failure(1))
        writer.add(make_record(2))
    assert open_run(tmp_path).sample_ids() == ["s0", "s2"]


def test_names_of_commits_are_parsed_as_they_are_made():
    for shard, counter in [((0, 1), 0), ((3, 128), 1_234_567)]:
        assert files.parse_stem(files.commit_stem(shard, counter)) == (shard, counter)
    assert files.parse_stem("notes") is None

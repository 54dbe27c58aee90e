import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from midsight.errors import CommitError, DamagedRunError, RunError
from midsight.store import RunWriter, compact, lock, open_run
from support.made_up import QUERY_0, content_of, files_of, make_failure, make_record, make_spec, write_run

TESTS = str(Path(__file__).parents[1])


def write_small_commits(path, seed=0):
    """A run of two shards with 4 to 9 commits, images and failures spread as `seed` says."""
    choose = np.random.default_rng(seed)
    index = 0
    for shard in ((0, 2), (1, 2)):
        with RunWriter(path, make_spec(), shard=shard) as writer:
            for _ in range(choose.integers(2, 5)):
                for _ in range(choose.integers(1, 5)):
                    writer.add(make_record(index))
                    index += 1
                if choose.random() < 0.4:
                    writer.fail(make_failure(1000 + index))
                writer.commit()
            writer.fail(make_failure(2000 + index))
    return path


@pytest.fixture
def run_folder(tmp_path):
    return write_small_commits(tmp_path / "run")


def test_small_commits_become_one_in_each_shard(run_folder):
    before, bytes_before = content_of(run_folder), sum(file.stat().st_size for file in files_of(run_folder, ".parquet"))
    counters = {commit.shard: commit.counter for commit in open_run(run_folder).commits}
    done = compact.compact(run_folder)
    assert content_of(run_folder) == before
    commits = open_run(run_folder).commits
    assert [(commit.shard, commit.counter) for commit in commits] == [((i, 2), counters[i, 2] + 1) for i in (0, 1)]
    assert [commit.replaces for commit in commits] == [tuple(range(commit.counter)) for commit in commits]
    assert (done.commits_before, done.commits_after) == (sum(counters.values()) + 2, 2)
    assert (done.bytes_before, done.bytes_after) == (
        bytes_before,
        sum(file.stat().st_size for file in files_of(run_folder, ".parquet")),
    )
    assert len(list((run_folder / "parts").iterdir())) == 4


def test_a_second_compaction_finds_nothing_to_do(run_folder):
    compact.compact(run_folder)
    files = {file: file.read_bytes() for file in run_folder.rglob("*.*") if "locks" not in file.parts}
    done = compact.compact(run_folder)
    assert done.commits_before == done.commits_after
    assert files == {file: file.read_bytes() for file in run_folder.rglob("*.*") if "locks" not in file.parts}


def test_merged_commits_are_merged_again(run_folder):
    compact.compact(run_folder)
    with RunWriter(run_folder, make_spec(), shard=(0, 2)) as writer:
        assert "s0" in writer.done
        writer.add(make_record(500))
    before = content_of(run_folder)
    compact.compact(run_folder)
    assert content_of(run_folder) == before
    first = next(commit for commit in open_run(run_folder).commits if commit.shard == (0, 2))
    assert first.replaces == tuple(range(first.counter))  # also those that were merged before


def test_parts_grow_to_the_target_and_large_ones_stay_as_they_are(tmp_path):
    write_run(tmp_path, [make_record(i) for i in range(30)], commit_seconds=0)
    run = open_run(tmp_path)
    largest = max(batch.nbytes for batch in run.batches(run.columns))
    before = content_of(tmp_path)
    compact.compact(tmp_path, target_bytes=3 * largest)
    rows = [commit.rows for commit in open_run(tmp_path).commits]
    assert sum(rows) == 30
    assert set(rows) <= {6, 9, 12, 3}
    assert 3 < len(rows) < 6
    untouched = tmp_path / "one"
    write_run(untouched, [make_record(i) for i in range(30)], commit_seconds=0)
    compact.compact(untouched, target_bytes=1)
    assert len(open_run(untouched).commits) == 10
    assert content_of(tmp_path) == before == content_of(untouched)


def test_rows_of_one_image_stay_in_one_part(tmp_path):
    write_run(tmp_path, [make_record(i) for i in range(30)], commit_seconds=0)
    compact.compact(tmp_path, target_bytes=4_000)
    run = open_run(tmp_path)
    assert 1 < len(run.commits) < 10
    images = [set(batch.column("image_id").to_pylist()) for batch in run.batches(["image_id"])]
    assert sum(map(len, images)) == len(set.union(*images)) == 10


def test_the_last_failure_of_a_sample_still_counts(tmp_path):
    with RunWriter(tmp_path, make_spec(), commit_seconds=0) as writer:
        writer.fail(make_failure(0, "first"))
        writer.fail(make_failure(1, "first"))
    with RunWriter(tmp_path, make_spec(), shard=(0, 2), retry_failed=True) as writer:
        writer.fail(make_failure(0, "second"))
    with RunWriter(tmp_path, make_spec(), commit_seconds=0, retry_failed=True) as writer:
        writer.add(make_record(4))
        writer.fail(make_failure(1, "second"))
    before = content_of(tmp_path)
    assert before[1] == [make_failure(0, "second"), make_failure(1, "second")]
    assert compact.compact(tmp_path).commits_after < 5
    assert content_of(tmp_path) == before
    failures = [failure for commit in open_run(tmp_path).commits for failure in commit.failures]
    assert len(failures) == 4  # also those that were tried again


def test_compaction_leaves_run_json_as_it_is(run_folder):
    before = (run_folder / "run.json").read_bytes()
    compact.compact(run_folder)
    assert any(commit.replaces for commit in open_run(run_folder).commits)
    assert (run_folder / "run.json").read_bytes() == before
    assert open_run(run_folder).spec.format_version == 1


def test_a_run_opened_before_says_that_it_must_be_opened_again(run_folder):
    run = open_run(run_folder)
    compact.compact(run_folder)
    with pytest.raises(RunError, match="was compacted or repaired after it was opened; open it again") as caught:
        run.matrix(QUERY_0)
    assert not isinstance(caught.value, DamagedRunError)


@pytest.mark.usefixtures("no_waiting")
def test_a_shard_that_is_written_is_not_compacted_and_no_writer_starts_meanwhile(run_folder, monkeypatch):
    before = content_of(run_folder)
    with RunWriter(run_folder, make_spec(), shard=(1, 2)), pytest.raises(RunError, match="is being written by process"):
        compact.compact(run_folder)
    tried = []

    def start_a_writer(*arguments):
        for shard in ((0, 2), (0, 1)):
            with pytest.raises(RunError, match=f"is being written by process {os.getpid()}"):
                write_run(run_folder, [], shard=shard)
            tried.append(shard)
        return merge(*arguments)

    merge = compact._merge
    monkeypatch.setattr(compact, "_merge", start_a_writer)
    compact.compact(run_folder)
    assert tried
    assert content_of(run_folder) == before
    write_run(run_folder, [])


def test_commits_of_a_shard_that_starts_meanwhile_stay_as_they_are(tmp_path, monkeypatch):
    with RunWriter(tmp_path, make_spec(), shard=(0, 2), commit_seconds=0) as writer:
        for i in range(4):
            writer.add(make_record(i))

    @contextmanager
    def hold_and_start_another(*arguments):
        with lock.hold_shards(*arguments):
            with RunWriter(tmp_path, make_spec(), shard=(1, 2), commit_seconds=0) as writer:
                for i in range(4, 8):
                    writer.add(make_record(i))
            yield

    monkeypatch.setattr(compact, "hold_shards", hold_and_start_another)
    compact.compact(tmp_path)
    run = open_run(tmp_path)
    shards = [commit.shard for commit in run.commits]
    assert shards.count((0, 2)) == 1
    assert shards.count((1, 2)) > 1
    assert sorted(run.sample_ids()) == [f"s{i}" for i in range(8)]


def test_a_merged_part_that_reads_back_differently_is_not_committed(run_folder, monkeypatch):
    before, names = content_of(run_folder), sorted(run_folder.rglob("parts/*"))

    def write_badly(path, data):
        write(path, bytes(data[:-1]) + b"!" if path.suffix == ".parquet" else data)

    write = compact.write_new
    monkeypatch.setattr(compact, "write_new", write_badly)
    with pytest.raises(RunError, match=r"2-0000\d\d\.parquet"):
        compact.compact(run_folder)
    assert content_of(run_folder) == before
    monkeypatch.undo()
    encode = compact.encode_part

    def encode_differently(table):
        column = table.schema.get_field_index("score")
        return encode(
            table.set_column(column, table.schema.field(column), table.column("score").take([0] * len(table)))
        )

    monkeypatch.setattr(compact, "encode_part", encode_differently)
    with pytest.raises(RunError, match="does not read back as it was written; check the disk"):
        compact.compact(run_folder)
    assert content_of(run_folder) == before
    assert sorted(run_folder.rglob("parts/*")) == names


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("digest_part", MemoryError()),
        ("_holds", DamagedRunError("The part is damaged.")),
        ("_holds", KeyboardInterrupt()),
        ("write_commit", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_merge_that_fails_leaves_no_part_behind(run_folder, monkeypatch, name, error):
    def fail(*_):
        raise error

    before, names = content_of(run_folder), sorted(run_folder.rglob("parts/*"))
    monkeypatch.setattr(compact, name, fail)
    with pytest.raises(CommitError if isinstance(error, OSError) else type(error)):
        compact.compact(run_folder)
    assert sorted(run_folder.rglob("parts/*")) == names
    assert content_of(run_folder) == before


def test_a_part_whose_record_is_written_is_kept_whatever_fails_then(run_folder, monkeypatch):
    def write_and_fail(*arguments):
        write(*arguments)
        raise OSError(errno.EIO, "Input/output error")

    before = content_of(run_folder)
    write = compact.write_commit
    monkeypatch.setattr(compact, "write_commit", write_and_fail)
    with pytest.raises(CommitError, match="could not be compacted: Input/output error"):
        compact.compact(run_folder)
    assert content_of(run_folder) == before


def test_a_text_that_repeats_counts_with_every_row_that_holds_it(tmp_path):
    text = "long " * 2_000
    records = [make_record(i, image_id=f"{i}", extras={"source": text}) for i in range(12)]
    write_run(tmp_path, records, commit_seconds=0)
    compact.compact(tmp_path, target_bytes=3 * len(text) + 5_000)
    assert [commit.rows for commit in open_run(tmp_path).commits] == [3, 3, 3, 3]
    compact.compact(tmp_path, target_bytes=6 * len(text) + 10_000)
    assert [commit.rows for commit in open_run(tmp_path).commits] == [6, 6]
    assert [part.stat().st_size for part in files_of(tmp_path, ".parquet")] < [2 * len(text)] * 2


def test_bits_tell_negative_zero_from_zero_and_nan_equals_itself(tmp_path):
    values = [0.0, -0.0, float("nan"), None]
    records = [make_record(i, extras={"score": value}) for i, value in enumerate(values)]
    write_run(tmp_path, records, commit_seconds=0)
    compact.compact(tmp_path)
    (part,) = files_of(tmp_path, ".parquet")
    assert [repr(value) for value in open_run(tmp_path).table().column("score").to_pylist()] == [
        "0.0", "-0.0", "nan", "None",
    ]  # fmt: skip
    table = open_run(tmp_path).table()
    index = table.schema.get_field_index("score")
    flipped = table.set_column(index, "score", table.column("score").take([1, 1, 2, 3]))
    assert compact._bits(table).equals(compact._bits(table))
    assert not compact._bits(table).equals(compact._bits(flipped))
    assert part.exists()


def test_damage_stops_a_compaction_before_it_removes_anything(run_folder):
    file = files_of(run_folder, ".parquet")[0]
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    names = sorted(run_folder.rglob("parts/*"))
    with pytest.raises(DamagedRunError, match=file.name):
        compact.compact(run_folder)
    assert sorted(run_folder.rglob("parts/*")) == names


class Killed(BaseException):
    """What a process never sees."""


class Disk:
    """Counts what changes the disk; from step `last` on nothing does: it raises `error`."""

    def __init__(
        self, monkeypatch, error: BaseException | type[BaseException] = BaseException, last=None, watch=lambda: None
    ):
        self.steps, self.error, self.last, self.watch = 0, error, last, watch
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, act):
        def counted_act(*arguments, **options):
            if self.steps == self.last:
                raise self.error
            self.steps += 1
            self.watch()
            return act(*arguments, **options)

        return counted_act


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_any_step_the_run_reads_the_same(tmp_path, monkeypatch, seed):
    original = write_small_commits(tmp_path / "run", seed)
    before = content_of(original)
    path = tmp_path / "counted"
    shutil.copytree(original, path)
    with monkeypatch.context() as patched:
        disk = Disk(patched, watch=lambda: content_of(path) == before or pytest.fail("it reads differently"))
        compact.compact(path)
    assert len(list((path / "parts").iterdir())) == 4
    assert disk.steps > 20
    cleaned_by_writer = 0
    for last in range(disk.steps):
        path = tmp_path / str(last)
        shutil.copytree(original, path)
        with monkeypatch.context() as patched:
            Disk(patched, Killed(), last)
            with pytest.raises(Killed):
                compact.compact(path)
        assert content_of(path) == before, last
        if last % 2:  # the next writer cleans up as well as the next compaction
            merged = any(commit.replaces for commit in open_run(path).commits)
            names = set((path / "parts").iterdir())
            for shard in ((0, 2), (1, 2)):
                write_run(path, [], shard=shard)
            left = set((path / "parts").iterdir())
            visible = {f"{commit.shard[0]}-of-2-{commit.counter:06d}" for commit in open_run(path).commits}
            assert {file.stem for file in left} == visible, last
            cleaned_by_writer += merged and left < names
        compact.compact(path)
        assert content_of(path) == before, last
        assert len(list((path / "parts").iterdir())) == 4, last
        shutil.rmtree(path)
    assert cleaned_by_writer


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_leaves_the_run_as_it_reads(run_folder, monkeypatch, tmp_path, number):
    before = content_of(run_folder)
    with monkeypatch.context() as patched:
        shutil.copytree(run_folder, tmp_path / "counted")
        disk = Disk(patched)
        compact.compact(tmp_path / "counted")
    for last in range(0, disk.steps, 3):
        path = tmp_path / str(last)
        shutil.copytree(run_folder, path)
        with monkeypatch.context() as patched:
            Disk(patched, OSError(number, os.strerror(number)), last)
            with pytest.raises(CommitError, match=f"could not be compacted: {os.strerror(number)}; it reads as before"):
                compact.compact(path)
        assert content_of(path) == before
        compact.compact(path)
        assert content_of(path) == before


KILLING = """
    import os, shutil, signal, sys
    from pathlib import Path
    from midsight.store import compact, commits

    original, folder, point, times = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

    def killing(act, when, before):
        def killed(*arguments, **options):
            if before and when(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            result = act(*arguments, **options)
            if when(*arguments):
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return killed

    def name(path, *_):
        return path.name

    points = {
        "before the part": (compact, "encode_part", lambda *_: True, True),
        "in the part's bytes": (os, "fsync", lambda *_: True, True),
        "between part and record": (compact, "write_commit", lambda *_: True, True),
        "before the first rename": (Path, "replace", lambda *_: True, True),
        "before the record's rename": (Path, "replace", lambda p, *_: ".json" in p.name and "run" not in p.name, True),
        "after the record's rename": (Path, "replace", lambda p, *_: ".json" in p.name and "run" not in p.name, False),
        "between an old record and its part": (Path, "unlink", lambda p: p.suffix == ".json", False),
        "among the old parts": (Path, "unlink", lambda p: p.name.endswith("1.parquet"), False),
    }
    owner, attribute, when, before = points[point]
    for i in range(times):
        shutil.copytree(original, folder / str(i))
        child = os.fork()
        if not child:
            setattr(owner, attribute, killing(getattr(owner, attribute), when, before))
            compact.compact(folder / str(i))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it lived"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        "before the part",
        "in the part's bytes",
        "between part and record",
        "before the first rename",
        "before the record's rename",
        "after the record's rename",
        "between an old record and its part",
        "among the old parts",
    ],
)
def test_a_real_kill_at_a_named_point_leaves_the_run_as_it_reads(run_folder, tmp_path, point):
    before = content_of(run_folder)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLING), str(run_folder), str(tmp_path), point, "10"],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])},
    )
    for i in range(10):
        path = tmp_path / str(i)
        assert content_of(path) == before
        assert len(list((path / "parts").iterdir())) > 4  # it was killed halfway
        compact.compact(path)
        assert content_of(path) == before
        assert len(list((path / "parts").iterdir())) == 4


def test_readers_see_the_same_rows_while_it_is_compacted_again_and_again(tmp_path):
    for i in range(0, 60, 3):
        write_run(tmp_path, [make_record(i)])
    expected = [f"s{i}" for i in range(0, 60, 3)]
    over, reads, errors = threading.Event(), [], []

    def read():
        while not over.is_set():
            try:
                reads.append(open_run(tmp_path).sample_ids() == expected)
            except RunError as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for size in range(6_000, 60_000, 3_000):
            compact.compact(tmp_path, target_bytes=size)
    finally:
        over.set()
        reader.join()
    assert all(reads)
    assert len(reads) > 5
    # A part may go between opening and reading; the error says that and does not call it damage.
    assert not [error for error in errors if isinstance(error, DamagedRunError)]


def test_an_old_record_that_came_back_damaged_is_ignored(run_folder):
    old = {file: file.read_bytes() for file in (run_folder / "parts").iterdir()}
    compact.compact(run_folder)
    before = content_of(run_folder)
    for file, data in old.items():
        file.write_bytes(data[: len(data) // 2])
    assert content_of(run_folder) == before
    for shard in ((0, 2), (1, 2)):
        write_run(run_folder, [], shard=shard)
    assert content_of(run_folder) == before
    assert not any(file.exists() for file in old)

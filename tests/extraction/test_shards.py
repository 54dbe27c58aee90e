"""Shards: one run from several processes, cut by image, whatever their number is from one start to the next."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import MidsightError
from midsight.extraction.todo import rows_in_shard
from midsight.samples.sample import Failure, Sample
from midsight.store.files import parse_shard
from midsight.store.writer import RunWriter
from support.pictures import write_csv

CALL = {"layers": [0, 7], "max_new_tokens": 2, "batch_size": 3}
ROWS = 18
IMAGES = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eighteen questions on six images, one of them missing, and a row without a question."""
    rows = [f"q{n},{n % IMAGES}.png,{'' if n == 4 else f'What is {n}?'}" for n in range(ROWS)]
    return write_csv(tmp_path_factory.mktemp("shards"), [(40 + 30 * i, 64) for i in range(IMAGES - 1)], rows)


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory):
    return midsight.extract(data, model=model, out=tmp_path_factory.mktemp("whole") / "run", **CALL)


def assert_same(run, whole):
    assert run.table().equals(whole.table())
    assert run.failures() == whole.failures()
    for name in whole.vector_columns:
        errors = np.linalg.norm(run.matrix(name) - whole.matrix(name), axis=1)
        assert (errors <= 1e-5 * np.linalg.norm(whole.matrix(name), axis=1)).all(), name


def test_every_shard_does_its_images_and_the_run_is_the_whole(data, model, whole, tmp_path):
    seen = []
    for number in (2, 0, 1):
        run = midsight.extract(data, model=model, out=tmp_path / "run", shard=(number, 3), progress=seen.append, **CALL)
    assert_same(run, whole)
    assert {commit.shard for commit in run.commits} == {(0, 3), (1, 3), (2, 3)}
    starts = [progress for progress in seen if progress.done + progress.failed == 0]
    assert sum(progress.samples for progress in starts) == ROWS
    assert [progress.already for progress in starts] == [0, 0, 0]
    image_ids = [{id_ for batch in part for id_ in batch} for part in rows_by_shard(run)]
    assert not set.intersection(*image_ids)
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "run")])
    assert f"{len(whole)} stored, 4 failed, of 18 rows" in " ".join(shown.output.split())


def rows_by_shard(run):
    from midsight.store.commits import part_path
    from midsight.store.parts import read_part

    for _, commits in itertools.groupby(sorted(run.commits, key=lambda c: c.shard), key=lambda c: c.shard):
        parts = [(part_path(run.path, c.shard, c.counter), c.part) for c in commits if c.part]
        yield [batch["image_id"].to_pylist() for path, part in parts for batch in read_part(path, part, ["image_id"])]


def test_the_number_of_shards_may_change_between_starts(data, model, whole, tmp_path):
    """Done by one of two and then in three: what is stored is not done again."""
    half = midsight.extract(data, model=model, out=tmp_path / "run", shard=(1, 2), **CALL)
    done_before = len(half) + len(half.failures())
    assert 0 < done_before < ROWS
    seen = []
    for number in range(3):
        run = midsight.extract(data, model=model, out=tmp_path / "run", shard=(number, 3), progress=seen.append, **CALL)
    assert_same(run, whole)
    starts = [progress for progress in seen if progress.done + progress.failed == 0]
    assert sum(progress.already for progress in starts) == done_before


@pytest.mark.usefixtures("no_waiting")
def test_a_shard_that_is_being_written_refuses_another_process_and_other_cuts(data, model, whole, tmp_path):
    with RunWriter(tmp_path / "run", whole.spec, shard=(0, 2)):
        with pytest.raises(midsight.RunError, match=r"shard 0-of-2 .* is being written by process \d+ on \S+ since 2"):
            midsight.extract(data, model=model, out=tmp_path / "run", shard=(0, 2), **CALL)
        with pytest.raises(midsight.RunError, match=r"shard 0-of-2 .* is being written by process"):
            midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
        run = midsight.extract(data, model=model, out=tmp_path / "run", shard=(1, 2), **CALL)
    assert 0 < len(run) + len(run.failures()) < ROWS


@given(st.lists(st.none() | st.integers(0, 9), max_size=60), st.integers(1, 7), st.integers(0, 60))
def test_shards_share_every_row_once_keep_images_whole_and_a_limit_takes_nothing_from_them(images, count, limit):
    rows = [
        Failure(str(n), n, "bad") if image is None else Sample(str(n), n, (b"",), "?", image=f"{image}.png")
        for n, image in enumerate(images)
    ]
    shards = [list(rows_in_shard(rows, (number, count))) for number in range(count)]
    assert sorted(row.input_index for shard in shards for row in shard) == list(range(len(rows)))
    owners = {}
    for number, shard in enumerate(shards):
        for row in shard:
            if isinstance(row, Sample):
                assert owners.setdefault(row.image, number) == number
        begin = [row for row in shard if row.input_index < limit]
        assert list(rows_in_shard(rows[:limit], (number, count))) == begin
    changed = [Failure(row.sample_id, row.input_index, "bad") if row.input_index == 0 else row for row in rows]
    kept = [[row for row in shard if row.input_index > 0] for shard in shards]
    again = [[row for row in rows_in_shard(changed, (number, count)) if row.input_index > 0] for number in range(count)]
    assert again == kept, "a row that fails moves no other"


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "0/0", "1/2/3", ""])
def test_a_share_that_does_not_exist_is_refused_with_one_sentence(text, tmp_path):
    with pytest.raises(MidsightError, match=r"^shard"):
        parse_shard(text)
    refused = CliRunner().invoke(app, ["extract", "x.csv", "--model", "m", "--out", str(tmp_path), f"--shard={text}"])
    assert refused.exit_code == 2
    assert "--shard" in refused.output


def test_the_command_takes_a_share(data, checkpoint, tmp_path):
    arguments = ["extract", data, "--model", checkpoint, "--device", "cpu", "--out", tmp_path / "run", "--no-answers"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--shard", "1/2", "--layers", "0"])
    assert done.exit_code in (0, 1), done.output
    run = midsight.open_run(tmp_path / "run")
    assert {commit.shard for commit in run.commits} == {(1, 2)}
    assert f"{len(run) + len(run.failures())} samples on " in done.output

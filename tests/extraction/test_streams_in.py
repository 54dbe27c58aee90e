"""Datasets of the Hub into a run: grouped, resumed, cut into shards, broken off."""

import itertools

import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import BrokenOffError, MidsightError
from midsight.samples.open import open_dataset
from midsight.samples.options import DatasetOptions
from midsight.samples.streams import open_hub, stream_rows
from support.hub_rows import image_rows, iterable, stand_in
from support.pictures import encoded, picture

IMAGES = [encoded(picture((40 + 30 * i, 64), i)) for i in range(3)]
ORDER = [0, 1, 2, 0, 1, 0]
CALL = {"layers": [0, 7], "max_new_tokens": 2, "batch_size": 2}


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="the extra `datasets` is not installed")


@pytest.fixture
def hub(datasets, monkeypatch):
    return stand_in(datasets, iterable(datasets, image_rows(ORDER, IMAGES)), monkeypatch)


def by_id(run):
    rows = run.table().to_pylist()
    states = run.matrix("query_token_representation", layer=7)
    return {row["question"]: (row["image_id"], row["n"], row["answer_token_ids"]) for row in rows}, states


def test_a_stream_gives_the_rows_that_the_same_images_give_in_a_list(hub, model, tmp_path):
    seen = []
    run = midsight.extract("hf://owner/name", model=model, out=tmp_path / "run", progress=seen.append, **CALL)
    pairs = [(IMAGES[i], f"What is {n}?") for n, i in enumerate(ORDER)]
    listed = midsight.extract(pairs, model=model, out=tmp_path / "list", **CALL)
    assert run.table()["question"].to_pylist() == [question for _, question in pairs]
    assert run.table()["n"].to_pylist() == list(range(6))
    assert run.table()["image_id"] == listed.table()["image_id"]
    assert run.table()["answer_token_ids"] == listed.table()["answer_token_ids"]
    for name in run.vector_columns:
        assert np.allclose(run.matrix(name), listed.matrix(name), rtol=0, atol=1e-4), name
    stored = list(itertools.chain(*(batch["input_index"].to_pylist() for batch in run.batches(["input_index"]))))
    images = [ORDER[index] for index in stored]
    assert len(list(itertools.groupby(images))) == len(set(images)), "the questions of an image are together"
    assert (seen[0].samples, seen[0].remaining, seen[-1].done) == (None, None, 6)
    stored = run.spec.dataset
    assert (stored.path, stored.rows, stored.revision) == ("hf://owner/name", None, "c0ffee")
    assert stored.sha256 == open_dataset("hf://owner/name").sha256


def test_a_stream_goes_on_where_it_was_left_and_a_row_that_is_bad_fails_alone(hub, datasets, model, tmp_path):
    rows = image_rows(ORDER, IMAGES)
    rows[3]["question"] = " "
    hub.source = iterable(datasets, rows)
    first = midsight.extract("hf://owner/name", model=model, out=tmp_path / "run", limit=2, **CALL)
    assert len(first) == 2
    seen = []
    run = midsight.extract("hf://owner/name", model=model, out=tmp_path / "run", progress=seen.append, **CALL)
    assert (len(run), [failure.input_index for failure in run.failures()]) == (5, [3])
    assert (seen[0].already, seen[-1].done, seen[-1].failed) == (2, 3, 1)


def test_another_commit_split_or_column_of_the_stream_is_another_run(hub, model, tmp_path):
    midsight.extract("hf://owner/name", model=model, out=tmp_path / "run", limit=1, **CALL)
    hub.commit = "decade"
    with pytest.raises(midsight.RunError, match=r"was started with data=.*, and its content is now another"):
        midsight.extract("hf://owner/name", model=model, out=tmp_path / "run", **CALL)
    hub.commit = "c0ffee"
    other = open_dataset("hf://owner/name", DatasetOptions(id_column="n"))
    with pytest.raises(midsight.RunError, match="id_column"):
        midsight.extract(other, model=model, out=tmp_path / "run", **CALL)
    with pytest.raises(MidsightError, match="leave question out"):
        open_dataset("hf://owner/name", DatasetOptions(question="What?"))


def test_shards_of_a_stream_fill_one_run(hub, model, tmp_path):
    for number in range(3):
        run = midsight.extract("hf://owner/name", model=model, out=tmp_path / "run", shard=(number, 3), **CALL)
    assert run.table()["n"].to_pylist() == list(range(6))


def test_a_stream_that_breaks_off_keeps_what_it_gave_and_exits_with_3(hub, datasets, checkpoint, tmp_path):
    def broken():
        yield from image_rows(ORDER[:4], IMAGES)
        raise ConnectionResetError("the line went dead")

    whole = hub.source
    hub.source = datasets.IterableDataset.from_generator(broken, features=whole.features)
    with pytest.raises(BrokenOffError, match="broke off after row 4: the line went dead"):
        list(open_hub("hf://owner/name").rows())
    arguments = ["extract", "hf://owner/name", "--model", checkpoint, "--device", "cpu", "--out", tmp_path / "run"]
    more = ["--layers", "0", "--max-new-tokens", "2"]
    stopped = CliRunner().invoke(app, list(map(str, [*arguments, *more])))
    assert stopped.exit_code == 3, stopped.output
    assert "broke off after row 4" in stopped.output
    assert sorted(midsight.open_run(tmp_path / "run").table()["n"].to_pylist()) == [0, 1, 2, 3]
    hub.source = whole
    resumed = CliRunner().invoke(app, list(map(str, [*arguments, *more])))
    assert resumed.exit_code == 0, resumed.output
    assert "A stream of unknown length; the run holds 4 samples" in " ".join(resumed.output.split())
    assert "Its images are looked for as its rows arrive." in " ".join(resumed.output.split())
    assert len(midsight.open_run(tmp_path / "run")) == 6


@pytest.mark.parametrize("has_folder", [False, True])
def test_a_stream_whose_first_100_samples_fail_stops(hub, datasets, model, tmp_path, has_folder):
    """Without a folder the rows are failures; with one they are samples whose images do not exist."""
    rows = [{"image": {"bytes": None, "path": f"{n}.png"}, "question": "What?"} for n in range(300)]
    hub.source = iterable(datasets, rows)
    options = {"images": tmp_path} if has_folder else {}
    with pytest.raises(MidsightError, match=r"^The first 1\d\d samples all failed: .*png.*\. Correct that, then"):
        midsight.extract("hf://owner/name", model=model, out=tmp_path / "run", **options, **CALL)
    assert 100 <= len(midsight.open_run(tmp_path / "run").failures()) < 300


@pytest.mark.parametrize("batch_size", [2, 128])
def test_a_stream_that_begins_with_a_good_sample_does_not_stop(hub, datasets, model, tmp_path, batch_size):
    bad = {"image": {"bytes": None, "path": "gone.png"}, "question": "What?", "n": 0}
    (tmp_path / "gone").mkdir()
    hub.source = iterable(datasets, [*image_rows([0, 1], IMAGES), *[bad] * 250])
    call = {**CALL, "batch_size": batch_size, "images": tmp_path / "gone"}
    with pytest.warns(UserWarning, match="^250 samples failed, 2 stored"):
        run = midsight.extract("hf://owner/name", model=model, out=tmp_path / "run", **call)
    assert len(run) == 2


def test_an_id_that_repeats_ends_the_stream_and_costs_nothing_that_came_before(hub, datasets, checkpoint, tmp_path):
    rows = [{**row, "id": f"q{n % 5}"} for n, row in enumerate(image_rows(ORDER, IMAGES))]
    hub.source = iterable(datasets, rows)
    arguments = ["extract", "hf://owner/name", "--model", checkpoint, "--device", "cpu", "--out", tmp_path / "run"]
    more = ["--layers", "0", "--max-new-tokens", "2"]
    refused = CliRunner().invoke(app, list(map(str, [*arguments, *more, "--id-column", "id"])))
    assert refused.exit_code == 2, refused.output
    assert "has the id 'q0' twice, the second time in row 6" in refused.output
    assert midsight.open_run(tmp_path / "run").table()["n"].to_pylist() == [0, 1, 2, 3, 4]
    arguments[-1] = tmp_path / "guessed"
    done = CliRunner().invoke(app, list(map(str, [*arguments, *more])))
    assert done.exit_code == 0, done.output
    assert "Note: In 1 of the rows of hf://owner/name, the id in the column 'id' came before" in done.output
    run = midsight.open_run(tmp_path / "guessed")
    assert run.table()["id"].to_pylist() == [f"q{n % 5}" for n in range(6)]
    assert run.sample_ids()[:5] == [f"q{n}" for n in range(5)]


def test_types_that_only_the_first_rows_tell_are_not_forced_on_the_others(datasets, model, tmp_path):
    """As of CSV files, of which `datasets` knows no types: a value that does not fit fails alone."""
    values = [1, 2, 3, 4, 5, 6, "x", 0.5, None, 8]

    def rows():
        for n, value in enumerate(values):
            yield {"image": {"bytes": IMAGES[0], "path": None}, "question": f"What is {n}?", "n": value}

    source = datasets.IterableDataset.from_generator(rows)
    assert source.features is None
    stream = stream_rows(source, "hf://a/b", "digest")
    assert stream.extras == {"n": "int64"}
    run = midsight.extract(stream, model=model, out=tmp_path / "run", **CALL)
    assert run.table()["n"].to_pylist() == [1, 2, 3, 4, 5, 6, None, 8]
    assert [failure.input_index for failure in run.failures()] == [6, 7]
    assert all("does not fit its column of type int64" in failure.reason for failure in run.failures())

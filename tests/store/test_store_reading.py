"""What a Run gives to those who compute with its vectors: chosen rows, all layers, batches, arrays of their own."""

import pickle
import re
import shutil
from collections.abc import Iterable

import numpy as np
import pyarrow.parquet as pq
import pytest

from midsight.errors import DamagedRunError, MidsightError, RunError
from midsight.store import RunWriter, open_run, reader
from midsight.store.compact import compact
from support.made_up import QUERY_0, QUERY_1, VISION, make_failure, make_record, make_spec, write_run

COUNT = 40


def write_shards(path, **changes):
    """Forty rows in two shards and several parts, stored in an order that is not the dataset's."""
    order = np.random.default_rng(3).permutation(COUNT)
    for number in (0, 1):
        with RunWriter(path, make_spec(**changes), shard=(number, 2), commit_bytes=2_000) as writer:
            for i in order[number::2]:
                writer.add(make_record(int(i), image_id=f"image-{i}"))
            writer.fail(make_failure(COUNT + number))
    return open_run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("reading") / "run")


def expected(column, rows: Iterable[int] = range(COUNT)):
    return np.stack([make_record(int(i)).vectors[column] for i in rows])


def test_the_live_parts_are_listed_for_other_tools(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    old = {file.name: file.read_bytes() for file in (tmp_path / "run/parts").iterdir()}
    assert open_run(tmp_path / "run").part_paths() == [
        str(tmp_path / "run/parts" / f"{commit.name}.parquet") for commit in run.commits if commit.part
    ]
    compact(tmp_path / "run")
    for name, data in old.items():  # as if killed before they were deleted
        (tmp_path / "run/parts" / name).write_bytes(data)
    parts = open_run(tmp_path / "run").part_paths()
    assert len(parts) == 2
    ids = [sample_id for part in parts for sample_id in pq.read_table(part)["sample_id"].to_pylist()]
    assert sorted(ids) == sorted(run.sample_ids())


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda ids: np.array(ids, object)])
def test_rows_come_in_the_order_of_the_ids(run, kind):
    rows = [31, 2, 17, 3]
    samples = kind([f"s{i}" for i in rows])
    assert run.matrix(QUERY_0, samples=samples).tobytes() == expected(QUERY_0, rows).tobytes()
    stacked = run.matrices("query_token", samples=samples)
    assert stacked.tobytes() == np.stack([expected(QUERY_0, rows), expected(QUERY_1, rows)], axis=1).tobytes()


@pytest.mark.parametrize("kind", [list, np.array, lambda mask: np.array(mask, object)])
def test_a_mask_is_over_the_rows_in_dataset_order(run, kind):
    mask = [i % 7 == 3 for i in range(COUNT)]
    assert run.matrix(QUERY_1, samples=kind(mask)).tobytes() == expected(QUERY_1, range(3, COUNT, 7)).tobytes()


def test_masks_and_ids_of_pandas_and_polars_are_taken(run):
    pandas = pytest.importorskip("pandas", reason="masks are often pandas columns; in the development environment")
    polars = pytest.importorskip("polars", reason="masks are often polars columns; in the development environment")
    rows = np.flatnonzero(run.table()["hard"].to_numpy(zero_copy_only=False))
    for frame in (run.to_pandas(["sample_id", "hard"]), run.to_polars(["sample_id", "hard"])):
        assert run.matrix(QUERY_0, samples=frame["hard"]).tobytes() == expected(QUERY_0, rows).tobytes()
        assert run.matrix(QUERY_0, samples=frame["sample_id"]).tobytes() == expected(QUERY_0).tobytes()
    assert run.matrix(QUERY_0, samples=pandas.array([True] * COUNT)).shape == (COUNT, 8)
    assert run.matrix(QUERY_0, samples=polars.Series(["s4"])).tobytes() == expected(QUERY_0, [4]).tobytes()


def test_no_rows_may_be_asked_for(run):
    assert run.matrix(QUERY_0, samples=[]).shape == (0, 8)
    assert run.matrices("query_token", samples=[False] * COUNT).shape == (0, 2, 8)


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ("s1", "samples is a str; give a list of sample ids, or a mask with true or false for every row"),
        ({"s1", "s2"}, "samples is a set; give a list"),
        (["s1", "s2", "s1"], "samples holds the id 's1' 2 times; give each id once"),
        (["s1", "s77", "s99"], "does not hold 2 of the samples, for example 's77'; take them off the list"),
        ([True, False], r"samples holds 2 values, and True is not a sample id; .* for every row \(40\)"),
        ([0, 1], "samples holds 2 values, and 0 is not a sample id"),
        (["s1", None], "samples holds 2 values, and None is not a sample id"),
    ],
)
def test_samples_that_are_not_rows_are_refused(run, samples, sentence):
    with pytest.raises(MidsightError, match=sentence):
        run.matrix(QUERY_0, samples=samples)


def test_parts_without_a_wanted_row_are_not_read(run, monkeypatch):
    read = []

    def counted(path, digest, columns, schema, **kept):
        read.append(columns)
        return reader_read_part(path, digest, columns, schema, **kept)

    reader_read_part = reader.read_part
    monkeypatch.setattr(reader, "read_part", counted)
    run.matrix(QUERY_0)
    assert read.count([QUERY_0]) == len(run.part_paths()) > 3
    read.clear()
    run.matrix(QUERY_0, samples=["s5"])
    assert read.count([QUERY_0]) == 1


@pytest.mark.parametrize("store_dtype", ["float32", "float16"])
def test_all_layers_of_a_position_come_stacked(tmp_path, store_dtype):
    run = write_shards(tmp_path / "run", store_dtype=store_dtype)
    stacked = run.matrices("query_token")
    assert (stacked.shape, stacked.dtype) == ((COUNT, 2, 8), np.float32)
    for index, layer in enumerate(run.spec.request.layers):
        assert stacked[:, index].tobytes() == run.matrix("query_token_representation", layer).tobytes()


def test_a_position_that_the_run_does_not_hold_is_named(run):
    with pytest.raises(
        MidsightError, match=r"does not hold vectors of the position 'vision_token'; .* holds: query_token\."
    ):
        run.matrices("vision_token")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_are_written_into_the_array_that_is_given(run, tmp_path, dtype):
    out = np.lib.format.open_memmap(tmp_path / "X.npy", mode="w+", dtype=dtype, shape=(COUNT, 8))
    assert run.matrix(QUERY_1, out=out) is out
    out.flush()
    assert (np.load(tmp_path / "X.npy") == expected(QUERY_1)).all()
    layers = np.zeros((COUNT, 2, 8), dtype)
    assert run.matrices("query_token", out=layers) is layers
    assert (layers == run.matrices("query_token")).all()
    strided = np.zeros((COUNT, 16), dtype)[:, ::2]
    assert (run.matrix(QUERY_1, out=strided) == expected(QUERY_1)).all()


def test_half_precision_can_be_read_without_widening(tmp_path):
    run = write_shards(tmp_path / "run", store_dtype="float16")
    out = run.matrix(QUERY_0, out=np.empty((COUNT, 8), np.float16))
    assert out.tobytes() == expected(QUERY_0).astype(np.float16).tobytes()


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (np.empty((COUNT, 7), np.float32), "out is float32 [40, 7]; give a numpy array of float32 [40, 8], or of a"),
        (np.empty((COUNT, 8), np.float16), "out is float16 [40, 8]; give a numpy array of float32 [40, 8], or of a"),
        (np.empty((COUNT, 8), np.int64), "out is int64 [40, 8]; give"),
        ([], "out is a list; give"),
        (np.broadcast_to(np.float32(0), (COUNT, 8)), "out cannot be written to; open a memory map with the mode r+"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(run, out, sentence):
    with pytest.raises(MidsightError, match=re.escape(sentence)):
        run.matrix(QUERY_0, out=out)


def test_vectors_come_in_batches_with_their_ids(run):
    batches = [*run.vector_batches("query_token_representation", 1, batch_size=4)]
    assert max(len(batch.sample_ids) for batch in batches) == 4
    matrix = np.empty((COUNT, 8), np.float32)
    assert len([*run.vector_batches(QUERY_1, batch_size=np.int64(4))]) == len(batches)
    for ids, index, vectors in batches:
        assert [f"s{i}" for i in index] == ids
        assert vectors.dtype == np.float32
        vectors += 0  # the caller may change them
        matrix[index] = vectors
    assert matrix.tobytes() == expected(QUERY_1).tobytes()


def test_wrong_arguments_of_batches_are_refused_at_the_call(run):
    for size in (0, -1, 2.5, True):
        with pytest.raises(MidsightError, match=f"batch_size={size} is not a number of rows; give 1 or more"):
            run.vector_batches(QUERY_0, batch_size=size)
    with pytest.raises(MidsightError, match="does not hold the vectors 'nothing'"):
        run.vector_batches("nothing")
    with pytest.raises(MidsightError, match="has no column 'nothing'; it has sample_id, "):
        run.batches(["nothing"])


@pytest.mark.parametrize("layer", ["1", [0, 1], 1.0, True, (0,)])
def test_a_layer_that_is_not_one_number_is_refused(run, layer):
    sentence = f"layer={layer!r} is not a whole number; give one layer, like 16, or use run.matrices(position)"
    with pytest.raises(MidsightError, match=re.escape(sentence)):
        run.matrix("query_token_representation", layer)
    assert (run.matrix("query_token_representation", np.int32(1)) == expected(QUERY_1)).all()


def test_another_working_directory_changes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    opened = open_run("run")
    monkeypatch.chdir(tmp_path)
    assert opened.path == run.path
    assert (opened.matrix(VISION) == expected(VISION)).all()


def test_a_folder_that_is_gone_is_not_called_damaged(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    for read in (opened.table, opened.sample_ids, opened.failures, lambda: opened.matrix(QUERY_0)):
        with pytest.raises(RunError, match="run was not found; it was moved or deleted after it was opened") as caught:
            read()
        assert not isinstance(caught.value, DamagedRunError)


def test_a_pickle_is_small_and_holds_the_run_as_it_was(tmp_path):
    run = write_shards(tmp_path / "run")
    run.matrix(QUERY_0)
    data = pickle.dumps(run)
    assert len(data) < 200 + 30 * len(run.commits) + len(str(tmp_path))
    write_run(tmp_path / "run", [make_record(COUNT)], shard=(0, 2))
    again = pickle.loads(data)  # noqa: S301 - what we made ourselves
    assert len(again) == len(run) == COUNT < len(open_run(tmp_path / "run"))
    assert again.commits == run.commits
    assert again.matrix(QUERY_0).tobytes() == run.matrix(QUERY_0).tobytes()
    compact(tmp_path / "run")
    with pytest.raises(RunError, match="compacted, repaired or replaced after this run was pickled; open it again"):
        pickle.loads(data)  # noqa: S301 - what we made ourselves

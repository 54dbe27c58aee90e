"""Folders as data: images with one question, Parquet shards, saved Hugging Face datasets; other folders are refused."""

from __future__ import annotations

import datetime
import decimal
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from midsight.errors import MidsightError, SampleError
from midsight.samples.images import decode_image
from midsight.samples.options import DatasetOptions
from midsight.samples.tables import read_table
from support.made_tables import ENCODED, as_struct, write_arrow, write_parquet
from support.pictures import encoded, picture


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images in a folder and below it, and files that a scan must ignore."""
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    for name in ("z.PNG", "a.jpg", "b/c.webp", "B.tiff"):
        kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tiff": "TIFF"}[name.rpartition(".")[2].lower()]
        (folder / name).write_bytes(encoded(picture((10, 10), 1), kind))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.png").write_bytes(b"x")
    return folder


def test_a_folder_of_images_with_one_question(folder):
    dataset = read_table(folder, DatasetOptions(question="What is it?"))
    assert [sample.image for sample in dataset.samples] == ["B.tiff", "a.jpg", "b/c.webp", "z.PNG"]
    assert {sample.question for sample in dataset.samples} == {"What is it?"}
    assert {decode_image(sample.images[0]).size for sample in dataset.samples} == {(10, 10)}
    assert (dataset.rows, dataset.failures, dataset.extras, dataset.path) == (4, (), {}, folder)
    assert dataset.sha256 == read_table(folder, DatasetOptions(question="What is it?")).sha256
    assert dataset.sha256 != read_table(folder, DatasetOptions(question="Why?")).sha256
    assert read_table(folder, DatasetOptions(question="Why?"), limit=3).rows == 3
    (folder / "new.png").write_bytes(b"x")
    assert dataset.sha256 != read_table(folder, DatasetOptions(question="What is it?")).sha256


def test_answers_are_joined_to_the_images_of_a_folder(folder, tmp_path):
    (tmp_path / "answers.csv").write_text("file,label\na.jpg,yes\nb/c.webp,no\n")
    dataset = read_table(
        folder, DatasetOptions(question="Is it red?", answers_from=tmp_path / "answers.csv", on="image=file")
    )
    assert [sample.reference_answers for sample in dataset.samples] == [(), ("yes",), ("no",), ()]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_one_question_is_asked_about_the_images_of_a_table(tmp_path, name):
    rows = [{"id": f"r{n}", "image": f"{n}.png", "kind": "odd"} for n in range(2)]
    if name == "a.csv":
        (tmp_path / name).write_text("id,image,kind\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    elif name == "a.jsonl":
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    dataset = read_table(tmp_path / name, DatasetOptions(question="What is it?"))
    assert [(s.sample_id, s.image, s.question, s.extras) for s in dataset.samples] == [
        (f"r{n}", f"{n}.png", "What is it?", {"kind": "odd"}) for n in range(2)
    ]
    with pytest.raises(MidsightError, match="has questions of its own in the column 'kind'; leave question out"):
        read_table(tmp_path / name, DatasetOptions(question="What?", question_column="kind"))


def test_links_out_of_the_folder_pipes_and_devices_fail_alone(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(ENCODED[0])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop").symlink_to(folder)
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    dataset = read_table(folder, DatasetOptions(question="What?"))
    assert len(dataset.samples) == 5
    assert ["link.png" in f.reason or "zero.png" in f.reason for f in dataset.failures] == [True, True]
    assert all("leads out of the image folder" in f.reason for f in dataset.failures)
    assert dataset.notes == (
        f"{folder} leaves out 4 of its files: 2 hidden, 1 link to a folder, 1 *.txt. follow_links follows links.",
    )
    (pipe,) = [sample for sample in dataset.samples if sample.image == "pipe.png"]
    with pytest.raises(SampleError, match="is a pipe, socket or device"):
        decode_image(pipe.images[0])


def test_a_folder_that_is_not_a_dataset_is_refused(folder, tmp_path):
    with pytest.raises(
        MidsightError, match=r"is a folder without table files .* for a folder of images give question, else"
    ):
        read_table(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MidsightError, match=r"empty contains no image; image files end in \.png"):
        read_table(tmp_path / "empty", DatasetOptions(question="What?"))
    table = write_parquet(tmp_path / "a.parquet", as_struct(ENCODED))
    for path, split, said in (
        (table, None, "has questions of its own in the column 'question'; leave question out"),
        (tmp_path / "none", None, "does not exist"),
        (folder, "test", "is a folder without table files"),
    ):
        with pytest.raises(MidsightError, match=said):
            read_table(path, DatasetOptions(question="What?", split=split))
    with pytest.raises(MidsightError, match="has no splits; leave split='test' out"):
        read_table(table, DatasetOptions(split="test"))


def shards(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for n, name in enumerate(names):
        write_parquet(folder / name, as_struct([ENCODED[n], ENCODED[0]]), shard=pa.array([n, n]))
    return folder


def test_parquet_shards_are_one_table(tmp_path):
    folder = shards(tmp_path / "data", "test-00000-of-00002.parquet", "test-00001-of-00002-0123abcd.parquet")
    dataset = read_table(folder)
    assert [sample.extras["shard"] for sample in dataset.samples] == [0, 0, 1, 1]
    assert [sample.input_index for sample in dataset.samples] == [0, 1, 2, 3]
    assert dataset.samples[3].images == dataset.samples[0].images, "the image of both files is one"
    assert decode_image(dataset.samples[2].images[0]).size == (16, 9)
    by_pattern = read_table(folder / "test-*.parquet")
    assert (by_pattern.samples, by_pattern.sha256) == (dataset.samples, dataset.sha256)
    assert read_table(folder, DatasetOptions(split="test")).samples == dataset.samples
    one = read_table(folder / "test-00000-of-00002.parquet")
    assert (one.rows, one.sha256 == dataset.sha256) == (2, False)
    with pytest.raises(MidsightError, match=r"train-\* matches no table file"):
        read_table(folder / "train-*")


def test_splits_are_chosen_and_missing_shards_are_reported(tmp_path):
    folder = shards(tmp_path / "data", "test-00000-of-00001.parquet", "train-00000-of-00003.parquet")
    assert read_table(folder, DatasetOptions(split="test")).rows == 2
    with pytest.raises(MidsightError, match=r"has several splits; choose one of 'test', 'train' with split"):
        read_table(folder)
    with pytest.raises(MidsightError, match=r"has no split 'dev'; choose one of 'test', 'train'"):
        read_table(folder, DatasetOptions(split="dev"))
    with pytest.raises(MidsightError, match="has 1 of the 3 files of train; download the others"):
        read_table(folder, DatasetOptions(split="train"))
    plain = shards(tmp_path / "plain", "a.parquet", "b.parquet")
    assert read_table(plain).rows == 4
    assert read_table(plain, DatasetOptions(split="b")).rows == 2


def test_shards_with_other_columns_are_refused(tmp_path):
    folder = shards(tmp_path / "data", "a.parquet")
    write_parquet(folder / "b.parquet", as_struct(ENCODED))
    with pytest.raises(
        MidsightError, match=r"b\.parquet has the columns 'image', 'question', but a\.parquet has 'image'"
    ):
        read_table(folder)


def test_a_saved_dataset_and_one_with_splits(tmp_path):
    one = write_arrow(tmp_path / "one", as_struct(ENCODED), n=pa.array(range(5)))
    dataset = read_table(one)
    assert [sample.extras["n"] for sample in dataset.samples] == [0, 1, 2, 3, 4]
    both = tmp_path / "both"
    write_arrow(both / "test", as_struct(ENCODED[:2]))
    write_arrow(both / "train", as_struct(ENCODED))
    (both / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    assert read_table(both, DatasetOptions(split="test")).rows == 2
    with pytest.raises(MidsightError, match="has several splits; choose one of 'test', 'train' with split"):
        read_table(both)
    with pytest.raises(MidsightError, match="without splits; leave split='test' out"):
        read_table(one, DatasetOptions(split="test"))
    (both / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert read_table(both).rows == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "state.json cannot be read"),
        ("[]", "names no data files"),
        ('{"_data_files": []}', "names no data files"),
        (
            '{"_data_files": [{"filename": "../other/data.arrow"}]}',
            "data files must be .arrow files in the same folder",
        ),
        ('{"_data_files": [{"filename": "/etc/passwd"}]}', "data files must be .arrow files in the same folder"),
        ('{"_data_files": [{"filename": 5}]}', "data files must be .arrow files in the same folder"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "gone.arrow does not exist"),
    ],
)
def test_a_saved_dataset_whose_state_is_wrong_is_refused(tmp_path, state, message):
    folder = write_arrow(tmp_path / "one", as_struct(ENCODED))
    (folder / "state.json").write_text(state)
    with pytest.raises(MidsightError, match=message):
        read_table(folder)


def test_damaged_tables_are_refused_by_name(tmp_path):
    arrow = write_arrow(tmp_path / "one", as_struct(ENCODED)) / "data-00000-of-00001.arrow"
    parquet = write_parquet(tmp_path / "a.parquet", as_struct(ENCODED))
    for path, table in ((arrow, arrow.parent), (parquet, parquet)):
        content = path.read_bytes()
        for damaged in (b"", content[:100], b"x" * 500, content[: len(content) - 40]):
            path.write_bytes(damaged)
            with pytest.raises(MidsightError, match=r"cannot be read") as refusal:
                read_table(table)
            assert str(path) in str(refusal.value)
            assert "\n" not in str(refusal.value)


def test_values_of_every_type_become_what_a_run_can_hold(tmp_path):
    table = pa.table(
        {
            "image": ["a.png"],
            "question": ["b?"],
            "answers": pa.array([["yes", "no"]]),
            "id": pa.array([7], pa.uint64()),
            "day": pa.array([datetime.date(2024, 5, 6)]),
            "moment": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
            "price": pa.array([decimal.Decimal("1.50")]),
            "kind": pa.array(["x"]).dictionary_encode(),
            "half": pa.array([0.5], pa.float16()),
            "nested": pa.array([{"when": datetime.datetime(2024, 5, 6, 7), "list": [1, None]}]),
            "null": pa.array([None], pa.null()),
            "pairs": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = read_table(tmp_path / "a.parquet")
    (sample,) = dataset.samples
    assert (sample.sample_id, sample.reference_answers) == ("7", ("yes", "no"))
    assert dict(sample.extras) == {
        "day": "2024-05-06",
        "moment": "2023-11-14 22:13:20.123456789Z",
        "price": "1.50",
        "kind": "x",
        "half": 0.5,
        "nested": {"when": "2024-05-06T07:00:00", "list": [1, None]},
        "null": None,
        "pairs": [["k", 1]],
    }
    json.dumps(dict(sample.extras))
    assert dataset.extras["nested"] == "json"
    assert dataset.extras["day"] == "string"


def test_bad_rows_of_parquet_fail_alone_with_their_row(tmp_path):
    columns = {
        "image": ["a.png", None, "../x.png", "a.png", "https://x.org/a.png"],
        "question": ["b?", "b?", "b?", None, "c?"],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    dataset = read_table(tmp_path / "a.parquet")
    assert len(dataset.samples) == 1
    reasons = ["the image is null", "lies outside", "the question is null", "is a URL"]
    for n, (failure, reason) in enumerate(zip(dataset.failures, reasons, strict=True), start=2):
        assert failure.reason.startswith(f"{tmp_path / 'a.parquet'}, row {n}: ")
        assert reason in failure.reason

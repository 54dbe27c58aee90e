"""Tables that Python holds become the samples that the same table makes on disk."""

from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pyarrow
import pytest
from PIL import Image

import midsight
from midsight.samples.images import decode_image, image_id
from midsight.samples.options import DatasetOptions
from midsight.samples.tables import read_memory
from support.pictures import encoded, picture
from support.prompting import prompts

ROWS = [
    {"id": 7, "image": "a.png", "question": "What?", "answer": "yes", "level": 1.5},
    {"id": 8, "image": "b.png", "question": "Where?", "answer": None, "level": None},
]
MAKERS = {
    "list": lambda rows: rows,
    "pandas": pandas.DataFrame,
    "polars": polars.DataFrame,
    "pyarrow": pyarrow.Table.from_pylist,
    "datasets": datasets.Dataset.from_list,
}


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(encoded(picture((32, 32), number)))
    return tmp_path


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_kind_makes_the_same_samples(make, folder):
    read = read_memory(make(ROWS), DatasetOptions(images=folder))
    assert read.failures == ()
    assert [(s.sample_id, s.question, s.reference_answers, dict(s.extras)) for s in read.samples] == [
        ("7", "What?", ("yes",), {"level": 1.5}),
        ("8", "Where?", (), {"level": None}),
    ]
    assert [sample.images for sample in read.samples] == [(folder / "a.png",), (folder / "b.png",)]
    assert read.sha256 == read_memory(ROWS, DatasetOptions(images=folder)).sha256


@pytest.mark.parametrize("make", [list, pandas.DataFrame], ids=["list", "pandas"])
def test_images_may_be_decoded_or_bytes_and_rows_on_one_image_share_it(make):
    image = picture((40, 30), 1)
    rows = [{"picture": image, "q": f"What is {n}?"} for n in range(2)] + [{"picture": encoded(image), "q": "Who?"}]
    read = read_memory(make(rows), DatasetOptions(image_column="picture", question_column="q"))
    first, second, third = read.samples
    assert first.images[0] is second.images[0]
    assert first.image_key == second.image_key
    assert isinstance(third.images[0], bytes)


@pytest.mark.parametrize("make", [list, pandas.DataFrame], ids=["list", "pandas"])
def test_images_may_be_arrays(make):
    arrays = [np.asarray(picture((40, 30), number)) for number in range(2)]
    read = read_memory(make([{"image": array, "question": "What?"} for array in arrays]))
    assert [
        np.array_equal(np.asarray(decode_image(s.images[0])), a) for s, a in zip(read.samples, arrays, strict=True)
    ] == [
        True,
        True,
    ]


def test_images_of_datasets_stay_encoded():
    rows = {"image": [encoded(picture((32, 32), 1), "JPEG")], "question": ["What?"]}
    features = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    (sample,) = read_memory(datasets.Dataset.from_dict(rows, features=features)).samples
    assert sample.images == (rows["image"][0],)


@pytest.mark.parametrize("make", [list, pandas.DataFrame], ids=["list", "pandas"])
def test_images_may_be_inside_messages(make):
    parts = [{"type": "image", "image": picture((40, 30), 1)}, {"type": "text", "text": "What?"}]
    read = read_memory(make([{"messages": [{"role": "user", "content": parts}]}]))
    assert (read.failures, prompts(read)) == ((), ["#What?"])
    assert image_id(decode_image(read.samples[0].images[0])) == image_id(picture((40, 30), 1))


def test_a_frame_is_extracted_like_a_table_and_resumes(model, folder, tmp_path):
    call = {"model": model, "out": tmp_path / "run", "images": folder, "layers": [0], "answers": False}
    assert len(midsight.extract(pandas.DataFrame(ROWS), limit=1, **call)) == 1
    run = midsight.extract(pandas.DataFrame(ROWS), **call)
    assert run.sample_ids() == ["7", "8"]
    changed = [{**ROWS[0], "question": "Why?"}, ROWS[1]]
    with pytest.raises(midsight.RunError, match=r"started with data='from Python' \(2 rows, SHA-256"):
        midsight.extract(pandas.DataFrame(changed), **call)


def test_a_frame_with_two_columns_of_one_name_is_refused():
    frame = pandas.DataFrame([["a.png", "What?", "Why?"]], columns=["image", "question", "question"])
    for data in (frame, pyarrow.table([["a.png"], ["What?"], ["Why?"]], ["image", "question", "question"])):
        with pytest.raises(midsight.MidsightError, match="has several columns named 'question'; rename or remove them"):
            read_memory(data)


def test_a_bad_cell_fails_alone():
    rows = [{"image": 3, "question": "What?"}, {"image": Image.new("RGB", (8, 8)), "question": "What?"}]
    read = read_memory(rows)
    assert [failure.reason for failure in read.failures] == ["the list, row 1: the image is 3, not text."]
    assert len(read.samples) == 1


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_answers_of_a_file_are_joined(make, tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("key,label,kind\n8.0,no,odd\n7.0,yes,even\n")
    rows = [{name: value for name, value in row.items() if name != "answer"} for row in ROWS]
    read = read_memory(make(rows), DatasetOptions(answers_from=path, on="id=key"))
    assert [sample.reference_answers for sample in read.samples] == [("yes",), ("no",)]
    assert [sample.extras["kind"] for sample in read.samples] == ["even", "odd"]
    path.write_text("key,label,kind\n8,yes,odd\n7,yes,even\n")
    assert read_memory(make(rows), DatasetOptions(answers_from=path, on="id=key")).sha256 != read.sha256
    kind = type(make(rows)).__name__
    with pytest.raises(midsight.MidsightError, match=f"^the {kind} has no column 'key'; it has .*: choose one with on"):
        read_memory(make(rows), DatasetOptions(answers_from=path, on="key"))


def test_what_cannot_be_joined_is_refused():
    answers: Any = pandas.DataFrame(ROWS)
    with pytest.raises(midsight.MidsightError, match=r"^answers_from is a DataFrame; give a file, or join the tables"):
        read_memory(ROWS, DatasetOptions(answers_from=answers, on="id"))
    with pytest.raises(midsight.MidsightError, match=r"^on goes with answers_from; add it, or leave both out"):
        read_memory(ROWS, DatasetOptions(on="id"))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_one_question_is_asked_about_every_row(make):
    rows = [{"id": row["id"], "image": row["image"]} for row in ROWS]
    read = read_memory(make(rows), DatasetOptions(question="What is it?"))
    assert [(sample.sample_id, sample.question) for sample in read.samples] == [
        ("7", "What is it?"),
        ("8", "What is it?"),
    ]
    assert (read.options["question"], read.options["question_column"]) == ("What is it?", "question")
    assert read.sha256 != read_memory(make(rows), DatasetOptions(question="What?")).sha256
    kind = type(make(ROWS)).__name__
    with pytest.raises(
        midsight.MidsightError,
        match=f"^the {kind} has questions of its own in the column 'question'; leave question out",
    ):
        read_memory(make(ROWS), DatasetOptions(question="What?"))


def test_a_dataset_dict_is_one_of_its_splits():
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    assert read_memory(both, DatasetOptions(split="test")).rows == 1
    with pytest.raises(
        midsight.MidsightError, match="the DatasetDict has several splits; choose one of 'train', 'test'"
    ):
        read_memory(both)
    with pytest.raises(
        midsight.MidsightError, match="the DatasetDict has no split 'val'; choose one of 'train', 'test'"
    ):
        read_memory(both, DatasetOptions(split="val"))


def test_a_split_of_one_table_is_refused():
    with pytest.raises(
        midsight.MidsightError,
        match=r"^split='test' chooses one of several tables, and the list is one; leave it out\.$",
    ):
        read_memory(ROWS, DatasetOptions(split="test"))


def test_a_stream_that_python_holds_is_refused(tmp_path):
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    for split in (None, "test"):
        with pytest.raises(midsight.MidsightError, match="the IterableDataset is a stream; name the dataset as hf://"):
            midsight.extract(stream, model="model", out=tmp_path / "run", split=split)

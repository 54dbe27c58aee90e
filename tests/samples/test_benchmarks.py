"""Files of POPE, LLaVA and VLMEvalKit are read unchanged; columns that the user names win."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from midsight.errors import MidsightError
from midsight.samples.images import decode_image
from midsight.samples.options import DatasetOptions
from midsight.samples.sample import make_sample_id
from midsight.samples.tables import read_table
from support.pictures import encoded, picture

PICTURES = [picture((14, 11), i) for i in range(3)]
BASE64 = [base64.b64encode(encoded(one)).decode() for one in PICTURES]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tsv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


POPE = [
    {"question_id": 1, "image": "val/a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "val/a.jpg", "text": "Is there a bus in the image?", "label": "no"},
]


def test_pope(tmp_path):
    dataset = read_table(write_jsonl(tmp_path / "coco_pope_random.jsonl", POPE))
    assert [(s.sample_id, s.image, s.question, s.reference_answers) for s in dataset.samples] == [
        ("1", "val/a.jpg", "Is there a dog in the image?", ("yes",)),
        ("2", "val/a.jpg", "Is there a bus in the image?", ("no",)),
    ]
    assert (dataset.extras, dataset.failures) == ({}, ())


def test_pope_without_labels_and_with_columns_named(tmp_path):
    bench = [{**{name: row[name] for name in ("question_id", "image", "text")}, "category": "conv"} for row in POPE]
    dataset = read_table(write_jsonl(tmp_path / "a.jsonl", bench))
    assert [s.reference_answers for s in dataset.samples] == [(), ()]
    assert dataset.extras == {"category": "string"}
    named = read_table(
        write_jsonl(tmp_path / "b.jsonl", POPE), DatasetOptions(question_column="label", answer_column="text")
    )
    assert [(s.question, s.sample_id) for s in named.samples] == [
        ("yes", make_sample_id(0, "val/a.jpg", "yes")),
        ("no", make_sample_id(1, "val/a.jpg", "no")),
    ]
    own = read_table(write_jsonl(tmp_path / "c.jsonl", [{**row, "question": "Own?"} for row in POPE]))
    assert {s.question for s in own.samples} == {"Own?"}
    assert own.extras == {"question_id": "int64", "text": "string", "label": "string"}


def write_csv(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows, ""]))
    return path


@pytest.mark.parametrize("image", ["image_id", "image_name"])
@pytest.mark.parametrize("answer", ["answer", "gt_answer", "ground_truth_answer"])
def test_the_csv_of_the_halp_scripts(tmp_path, image, answer):
    path = write_csv(
        tmp_path / "a.csv", f"question_id,{image},question,{answer},source", "p_1,a.jpg,Dog?,yes,POPE",
        "p_2,b/c.jpg,Bus?,,MME",
    )  # fmt: skip
    dataset = read_table(path)
    assert [(s.sample_id, s.image, s.question, s.reference_answers) for s in dataset.samples] == [
        ("p_1", "a.jpg", "Dog?", ("yes",)),
        ("p_2", "b/c.jpg", "Bus?", ()),
    ]
    assert [s.extras for s in dataset.samples] == [{"source": "POPE"}, {"source": "MME"}]
    assert dataset.options["id_column"] == "question_id"


def test_the_csv_of_the_halp_scripts_with_both_names_and_with_columns_named(tmp_path):
    header = "question_id,image_id,image_name,question,answer,gt_answer"
    path = write_csv(tmp_path / "a.csv", header, "p_1,17,a.jpg,Dog?,yes,no")
    (sample,) = read_table(path).samples
    assert (sample.image, sample.reference_answers) == ("a.jpg", ("yes",))
    assert sample.extras == {"image_id": "17", "gt_answer": "no"}
    (named,) = read_table(path, DatasetOptions(answer_column="gt_answer", id_column="image_id")).samples
    assert (named.sample_id, named.reference_answers) == ("17", ("no",))
    own = write_csv(tmp_path / "b.csv", "question_id,image,image_id,question,answer", "p_1,x.jpg,17,Dog?,yes")
    (other,) = read_table(own).samples
    assert (other.image, other.extras) == ("x.jpg", {"question_id": "p_1", "image_id": "17"})


@pytest.mark.parametrize("name", ["image_path", "file_name", "Image", "img"])
def test_a_column_of_paths_wins_over_the_number_of_an_image(tmp_path, name):
    path = write_csv(tmp_path / "a.csv", f"question_id,image_id,{name},question,answer", "p_1,17,x.jpg,Dog?,yes")
    (sample,) = read_table(path).samples
    assert (sample.image, sample.reference_answers) == ("x.jpg", ("yes",))
    assert sample.extras == {"question_id": "p_1", "image_id": "17"}


def turns(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


LLAVA = [
    {"id": "0001", "image": "a.jpg", "conversations": turns("<image>\nWhat is it?", "A dog.", "How old?", "Two.")},
    {"id": "0001", "image": "a.jpg", "conversations": turns("Describe it.\n<image>", "Brown.")},
    {"id": "0002", "image": ["a.jpg", "b.jpg"], "conversations": turns("<image><image> Same?", "No.")},
    {"id": "0003", "image": "c.jpg", "conversations": turns("And this?")},
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_llava_asks_the_first_question_and_keeps_the_conversation(tmp_path, suffix):
    path = tmp_path / f"llava{suffix}"
    write_jsonl(path, LLAVA) if suffix == ".jsonl" else path.write_text(json.dumps(LLAVA))
    dataset = read_table(path)
    assert dataset.failures == ()
    assert [(s.image, s.question, s.reference_answers) for s in dataset.samples] == [
        ("a.jpg", "What is it?", ("A dog.",)),
        ("a.jpg", "Describe it.\n<image>", ("Brown.",)),
        ('["a.jpg", "b.jpg"]', "Same?", ("No.",)),
        ("c.jpg", "And this?", ()),
    ]
    assert [s.extras["conversations"] for s in dataset.samples] == [row["conversations"] for row in LLAVA]
    assert [s.extras["id"] for s in dataset.samples] == ["0001", "0001", "0002", "0003"], "they repeat"
    assert dataset.extras == {"id": "string", "conversations": "json"}


def test_llava_with_columns_named(tmp_path):
    rows = [{**row, "question": "Own?", "label": "x", "id": str(n)} for n, row in enumerate(LLAVA)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert {s.question for s in read_table(path).samples} == {"Own?"}
    named = read_table(path, DatasetOptions(question_column="conversations", answer_column="label", id_column="id"))
    assert [s.question for s in named.samples] == ["What is it?", "Describe it.\n<image>", "Same?", "And this?"]
    assert [s.sample_id for s in named.samples] == ["0", "1", "2", "3"]
    assert {s.reference_answers for s in named.samples} == {("x",)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": []}, r"the conversation is \[\]; it must begin with a turn from 'human'"),
        ({"conversations": "What?"}, 'the conversation is "What\\?"; it must begin'),
        ({"conversations": None}, "the conversation is null"),
        ({}, "the conversation is null"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "it must begin with a turn from 'human'"),
        ({"conversations": [{"from": "human", "value": 5}]}, "a turn of the conversation is 5, not text"),
        (
            {"conversations": [{"role": "user", "content": [{"video": "a.mp4"}, {"text": "What?"}]}]},
            r'a part of the conversation is \{"video": "a.mp4"\}, not a text or an image',
        ),
        ({"conversations": turns("<image>")}, "the question is empty"),
        ({"conversations": turns("<image> and <image>?")}, "2 placeholders <image>, but the sample has 1 image"),
        ({"image": None, "conversations": turns("What?")}, "the image is null"),
        (
            {"conversations": turns("Hi", "Hi.", "<image> What?")},
            "the first question is about no image, a later turn is",
        ),
    ],
)
def test_a_bad_conversation_fails_alone(tmp_path, row, reason):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([LLAVA[0], {"image": "a.jpg", **row}, LLAVA[1]]))
    dataset = read_table(path)
    (failure,) = dataset.failures
    with pytest.raises(ValueError, match=reason):
        raise ValueError(failure.reason)
    assert failure.reason.startswith(f"{path}, element 2: ")
    assert [s.input_index for s in dataset.samples] == [0, 2]


def test_text_without_an_image_fails_with_its_column(tmp_path):
    dataset = read_table(write_jsonl(tmp_path / "a.jsonl", [LLAVA[0], {"id": "4", "conversations": turns("Hello")}]))
    assert "there is no image (column 'image')" in dataset.failures[0].reason


def test_a_row_of_vlmevalkit_without_a_question_still_gives_its_image_to_others(tmp_path):
    rows = [
        {"index": "10", "image": BASE64[0], "question": "", "answer": "A"},
        {"index": "11", "image": "10", "question": "And here?", "answer": "B"},
    ]
    dataset = read_table(write_tsv(tmp_path / "MMBench.tsv", rows))
    (second,), (failure,) = dataset.samples, dataset.failures
    assert np.array_equal(np.asarray(decode_image(second.images[0])), np.asarray(PICTURES[0]))
    assert "question is empty" in failure.reason


def test_vlmevalkit_images_in_base64_options_and_images_that_rows_share(tmp_path):
    rows = [
        {"index": "10", "image": BASE64[0], "question": 'Which "one"?\nSay.', "A": "dog", "B": "a\tb", "answer": "A"},
        {"index": "11", "image": "10", "question": "And here?", "A": "x", "B": "y", "answer": "B"},
        {"index": "12", "image": "14", "question": "Later?", "A": "", "B": "", "answer": ""},
        {"index": "13", "image": str([BASE64[1], BASE64[2]]), "question": "Both?", "A": "", "B": "", "answer": "A"},
        {"index": "14", "image": BASE64[2], "question": "Last?", "A": "", "B": "", "answer": "A"},
        {"index": "15", "image": "99", "question": "Nothing?", "A": "", "B": "", "answer": "A"},
        {"index": "16", "image": "11", "question": "Chained?", "A": "", "B": "", "answer": "A"},
    ]
    path = write_tsv(tmp_path / "MMBench.tsv", rows)
    dataset = read_table(path)
    assert [s.sample_id for s in dataset.samples] == ["10", "11", "12", "13", "14"]
    first, second, third, both, last = dataset.samples
    assert (first.question, first.extras["B"], first.reference_answers) == ('Which "one"?\nSay.', "a\tb", ("A",))
    assert (second.images, second.image) == (first.images, first.image)
    assert (third.images, third.image) == (last.images, last.image)
    assert last.images[0] is both.images[1]
    for sample, numbers in ((first, [0]), (third, [2]), (both, [1, 2])):
        for image, number in zip(sample.images, numbers, strict=True):
            assert np.array_equal(np.asarray(decode_image(image)), np.asarray(PICTURES[number]))
    assert dataset.extras == {"A": "string", "B": "string"}
    nothing, chained = dataset.failures
    assert nothing.reason == f"{path}, line 8: the image is 99, and no row with that index has an image."
    assert chained.reason == f"{path}, line 9: the image is 11, and no row with that index has an image."
    assert (nothing.sample_id, nothing.input_index) == ("15", 5)


def test_an_index_of_vlmevalkit_that_became_a_float_still_names_its_image(tmp_path):
    rows = [
        {"index": "10.0", "image": BASE64[0], "question": "Which?"},
        {"index": "11.0", "image": "10", "question": "And here?"},
    ]
    first, second = read_table(write_tsv(tmp_path / "MMBench.tsv", rows)).samples
    assert (first.sample_id, second.images) == ("10", first.images)


def test_vlmevalkit_images_by_path_and_ids_by_option(tmp_path):
    rows = [
        {"index": "1", "image_path": "a.png", "question": "One?", "key": "k1"},
        {"index": "2", "image_path": "['a.png', 'b.png']", "question": "Two?", "key": "k2"},
    ]
    path = write_tsv(tmp_path / "a.tsv", rows)
    one, two = read_table(path).samples
    assert (one.images, len(two.images)) == ((tmp_path.resolve() / "a.png",), 2)
    assert one.sample_id == "1"
    keyed = read_table(path, DatasetOptions(id_column="key"))
    assert [s.sample_id for s in keyed.samples] == ["k1", "k2"]
    assert keyed.extras == {"index": "string"}
    shared = [{"id": "x", "index": "1", "image": BASE64[0], "question": "?"}]
    shared.append({"id": "y", "index": "2", "image": "1", "question": "??"})
    by_id = read_table(write_tsv(tmp_path / "b.tsv", shared))
    assert [s.sample_id for s in by_id.samples] == ["x", "y"]
    assert by_id.samples[0].images == by_id.samples[1].images


def test_an_index_is_an_id_in_vlmevalkits_tsv_only(tmp_path):
    rows = [{"index": 0, "image": "a.png", "question": "?"}, {"index": 0, "image": "b.png", "question": "?"}]
    assert len(read_table(write_jsonl(tmp_path / "a.jsonl", rows)).samples) == 2
    with pytest.raises(
        MidsightError,
        match=r"the id '0' twice, in line 2 and line 3; .*choose others with id_column, or leave them out",
    ):
        read_table(write_tsv(tmp_path / "a.tsv", rows), DatasetOptions(id_column="index"))
    assert len(read_table(tmp_path / "a.tsv").samples) == 2


def test_the_examples_of_the_documentation_are_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    jsonl, pope, llava, vlmevalkit, halp = (content for language, content in blocks if not language)
    shown = {"a.jsonl": jsonl, "pope.jsonl": pope, "llava.json": llava, "a.tsv": vlmevalkit, "a.csv": halp}
    questions = []
    for name, content in shown.items():
        (tmp_path / name).write_text(content.replace("iVBORw0KGgo...", BASE64[0]))
        dataset = read_table(tmp_path / name)
        assert dataset.failures == ()
        questions.append([sample.question for sample in dataset.samples])
    assert questions == [
        ["Is it lit?", "Which is brighter?"],
        ["Is there a dog in the image?"],
        ["What is it?"],
        ["Which one?", "And how many?"],
        ["Is there a dog in the image?"],
    ]

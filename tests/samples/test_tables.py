"""Rows become samples, or failures with a reason; a wrong table is refused as a whole."""

from __future__ import annotations

import csv
import datetime
import decimal
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from midsight.errors import MidsightError, SampleError
from midsight.samples.images import decode_image
from midsight.samples.options import DatasetOptions
from midsight.samples.sample import Sample, make_sample_id
from midsight.samples.tables import Dataset, make_samples, read_table

PAIR = {"image": "a.png", "question": "What is it?"}


@pytest.fixture
def jsonl(tmp_path):
    """Writes rows, given as objects or lines, and returns the path of the file."""

    def write(*rows: dict | str | bytes) -> Path:
        lines = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
        path = tmp_path / "data.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
        return path

    return write


@pytest.fixture
def csv_file(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "data.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def only_failure(dataset: Dataset) -> str:
    """The reason of the one failure among otherwise good rows."""
    (failure,) = dataset.failures
    assert dataset.rows == len(dataset.samples) + 1
    assert failure.reason.endswith(".")
    return failure.reason


def test_a_row_becomes_a_sample(jsonl, tmp_path):
    path = jsonl({**PAIR, "id": "q1", "answer": "A cat.", "split": "test", "height": 1.5})
    dataset = read_table(str(path))
    (sample,) = dataset.samples
    assert sample == Sample(
        sample_id="q1",
        input_index=0,
        images=(tmp_path.resolve() / "a.png",),
        question="What is it?",
        image="a.png",
        reference_answers=("A cat.",),
        extras={"split": "test", "height": 1.5},
    )
    assert dataset.extras == {"split": "string", "height": "float64"}
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (dataset.path, dataset.rows, dataset.failures) == (path, 1, ())


def test_the_images_of_a_table_decode(jsonl, tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    (sample,) = read_table(jsonl(PAIR)).samples
    assert decode_image(sample.images[0]).size == (3, 2)


def test_images_may_lie_in_another_folder(jsonl, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (sample,) = read_table(jsonl(PAIR), DatasetOptions(images=tmp_path / "elsewhere")).samples
    assert sample.images == ((tmp_path / "elsewhere" / "a.png").resolve(),)
    with pytest.raises(MidsightError, match=r"nowhere is not a folder; name the folder of the images with images\."):
        read_table(jsonl(PAIR), DatasetOptions(images=tmp_path / "nowhere"))


def test_several_images_are_a_list(jsonl, tmp_path):
    dataset = read_table(jsonl({**PAIR, "image": ["ä.png", "b.png"]}, {**PAIR, "image": ["a.png"]}))
    several, one = dataset.samples
    assert several.images == (tmp_path.resolve() / "ä.png", tmp_path.resolve() / "b.png")
    assert several.image == '["ä.png", "b.png"]'
    assert one.image == "a.png"


def test_csv_and_jsonl_give_the_same_samples(jsonl, csv_file):
    rows = [{**PAIR, "id": "1", "answer": "a, b", "split": "x"}, {**PAIR, "id": "2", "answer": "", "split": "0"}]
    from_csv = read_table(
        csv_file('id,image,question,answer,split\r\n1,a.png,What is it?,"a, b",x\r\n2,a.png,What is it?,,0\r\n')
    )
    from_jsonl = read_table(jsonl(*rows))
    assert from_csv.samples == from_jsonl.samples
    assert from_csv.extras == from_jsonl.extras == {"split": "string"}


def test_csv_cells_are_kept_unchanged(csv_file):
    dataset = read_table(csv_file('image,question,n,text\na.png,"Two\nlines?",007,"  1,5 ""x"" "\n\na.png,b?,,true\n'))
    assert [dict(sample.extras) for sample in dataset.samples] == [
        {"n": "007", "text": '  1,5 "x" '},
        {"n": "", "text": "true"},
    ]
    assert dataset.samples[0].question == "Two\nlines?"
    assert dataset.extras == {"n": "string", "text": "string"}
    assert dataset.rows == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_marks_line_ends_and_blank_lines_are_ignored(tmp_path, mark, newline):
    line = '{"image": "ü.png", "question": "Größe?"}'
    for suffix, lines in {"ndjson": ["", line, "  ", line], "csv": ["", "image,question", "", "ü.png,Größe?"]}.items():
        path = tmp_path / f"data.{suffix}"
        path.write_bytes(mark + newline.join(lines).encode())
        dataset = read_table(path)
        assert dataset.rows == len(dataset.samples) == (2 if suffix == "ndjson" else 1)
        assert [sample.input_index for sample in dataset.samples] == list(range(dataset.rows))
        assert {(sample.image, sample.question) for sample in dataset.samples} == {("ü.png", "Größe?")}


DEEP = '{"image": "a.png", "question": "b?", "x": ' + "[" * 101 + "]" * 101 + "}"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"image": "a.png", "question": ', "it cannot be read as JSON"),
        ("not JSON", "it cannot be read as JSON"),
        ("[" * 100_000, "it cannot be read as JSON"),
        ('{"x": ' + "9" * 5000 + "}", "it cannot be read as JSON"),
        ("[1, 2]", "it is not a JSON object"),
        ("null", "it is not a JSON object"),
        (b'{"image": "a.png", "question": "caf\xe9"}', "not encoded as UTF-8"),
        (DEEP, "more than 100 deep"),
        ('{"image": "a.png", "question": "\\ud800"}', "half of a surrogate pair"),
        ('{"image": "a.png", "question": "b", "extra": [{"\\udfff": 1}]}', "half of a surrogate pair"),
        ({"question": "b?"}, r"there is no image \(column 'image'\)"),
        ({"image": "a.png"}, r"there is no question \(column 'question'\)"),
        ({**PAIR, "image": None}, "the image is null, not text"),
        ({**PAIR, "image": 5}, "the image is 5, not text"),
        ({**PAIR, "image": {"bytes": "!" * 500}}, r"the image is \{.*\.\.\., not text"),
        ({**PAIR, "image": []}, r"the image is \[\]"),
        ({**PAIR, "image": ["a.png", None]}, "a list must hold one or more paths"),
        ({**PAIR, "image": ""}, "the image path '' is blank"),
        ({**PAIR, "image": "../a.png"}, "lies outside the image folder"),
        ({**PAIR, "image": ["a.png", "/etc/passwd"]}, "lies outside the image folder"),
        ({**PAIR, "image": "https://example.org/a.png"}, "is a URL"),
        ({**PAIR, "image": "a\0.png"}, "is not a usable path"),
        ({**PAIR, "question": None}, "the question is null, not text"),
        ({**PAIR, "question": 17}, "the question is 17, not text"),
        ({**PAIR, "question": ""}, "the question is empty"),
        ({**PAIR, "question": " \n\t"}, "the question is empty"),
        ({**PAIR, "id": 1.5}, "the id is 1.5; give text or a whole number"),
        ({**PAIR, "id": True}, "the id is true; give text or a whole number"),
    ],
)
def test_a_bad_row_fails_with_file_and_line_and_the_others_are_read(jsonl, row, reason):
    path = jsonl(PAIR, "", row, PAIR)
    dataset = read_table(path)
    with pytest.raises(SampleError, match=reason):
        raise SampleError(only_failure(dataset))
    (failure,) = dataset.failures
    assert failure.reason.startswith(f"{path}, line 3: ")
    assert failure.input_index == 1
    assert [sample.input_index for sample in dataset.samples] == [0, 2]


def test_a_failed_row_keeps_its_id_or_gets_one_from_its_text(jsonl):
    dataset = read_table(jsonl(PAIR, {**PAIR, "id": "q1", "question": ""}, "broken", b"broken \xff"))
    assert [failure.sample_id for failure in dataset.failures] == [
        "q1",
        make_sample_id(2, "broken", ""),
        make_sample_id(3, "broken \\xff", ""),
    ]


def test_a_valid_surrogate_pair_and_a_nul_in_a_question_are_text(jsonl):
    dataset = read_table(jsonl('{"image": "a.png", "question": "\\ud83d\\ude00 \\u0000?"}'))
    assert dataset.samples[0].question == "\U0001f600 \0?"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.png,b?", "it has 2 cells, the header 3"),
        ("a.png,b?,c,d", "it has 4 cells, the header 3"),
        (
            "a.png,b?," + "x" * 1_000_001,
            "column 'n' has 1,000,001 characters; only images may have more than 1,000,000.",
        ),
        (b"a.png,caf\xe9?,x", "it is not encoded as UTF-8"),
        ("a.png,b\rc.png,d?", "a carriage return is outside quotes"),
        ('a.png,b?,"x"y', "it cannot be read as CSV"),
        ("a.png,,x", "the question is empty"),
        ("../a.png,b?,x", "lies outside"),
    ],
)
def test_a_bad_csv_row_fails_with_file_and_line_and_the_others_are_read(csv_file, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    path = csv_file(b'image,question,n\na.png,"Two\nlines?",1\n' + line + b"\na.png,b?,2\n")
    dataset = read_table(path)
    assert reason in only_failure(dataset)
    assert dataset.failures[0].reason.startswith(f"{path}, line 4: ")
    assert [sample.extras["n"] for sample in dataset.samples] == ["1", "2"]
    assert csv.field_size_limit() == 131_072


def test_a_quote_that_is_never_closed_is_reported(csv_file):
    dataset = read_table(csv_file('image,question\na.png,b?\na.png,"open\na.png,c?\n'))
    assert "line 3: it cannot be read as CSV" in only_failure(dataset)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.txt", b"", r"supported are \.jsonl, \.ndjson, \.csv"),
        ("data", b"", "supported are"),
        ("data.jsonl", b"", "no row with values.*it is empty"),
        ("data.jsonl", b"\n \n", "it is empty"),
        ("data.jsonl", b'[\n{"image": "a"},\n]', "no column 'question'; it has 'image'"),
        ("data.jsonl", b'{"image": "a', "one JSON object per line; line 1: it cannot be read as JSON"),
        ("data.jsonl", b"{}\n", "line 1: it names no values"),
        ("data.jsonl", '{"image": "a"}'.encode("utf-16"), "UTF-16; save it as UTF-8"),
        (
            "data.jsonl",
            b'{"view": "a", "question": "b"}',
            "no column 'image'; it has 'view', 'question': choose one with image_column",
        ),
        (
            "data.jsonl",
            b'{"image": "a", "text": "b"}',
            "no column 'question'; it has 'image', 'text': choose one with question_column",
        ),
        ("data.csv", b"", "is empty; its first row must name the columns"),
        ("data.csv", b"\n\n", "is empty"),
        ("data.csv", "image,question\na,b".encode("utf-16-be"), "no column 'image'"),
        ("data.csv", "image,question\na,b".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("data.csv", b"image,qu\xe9stion\na,b", r"is not encoded as UTF-8 \(line 1\)"),
        ("data.csv", b"image^question\na^b", "no column 'image'; it has 'image\\^question'"),
        ("data.csv", b"image,question,n,n\n", "several columns named 'n'"),
        ("data.csv", b'image,"question', "has a bad header: it cannot be read as CSV: a quote is not closed"),
    ],
)
def test_a_wrong_table_is_refused_as_a_whole(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MidsightError, match=message) as refusal:
        read_table(path)
    assert str(path) in str(refusal.value)


def test_a_path_that_is_not_a_file_is_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, reason in {
        "folder.csv": "is a folder without table files",
        "pipe.jsonl": "is not a regular file",
        "none.csv": "does not exist",
    }.items():
        with pytest.raises(MidsightError, match=reason):
            read_table(tmp_path / name)


def test_columns_can_be_chosen_and_must_exist(jsonl):
    path = jsonl({"img": "a.png", "q": "b?", "label": "yes", "key": 7, "answer": "kept", "id": 3})
    dataset = read_table(
        path, DatasetOptions(image_column="img", question_column="q", answer_column="label", id_column="key")
    )
    (sample,) = dataset.samples
    assert (sample.sample_id, sample.image, sample.question) == ("7", "a.png", "b?")
    assert sample.reference_answers == ("yes",)
    assert sample.extras == {"answer": "kept", "id": 3}
    for role in ("image", "question", "answer", "id"):
        columns: dict[str, Any] = {"image_column": "img", "question_column": "q", f"{role}_column": "nope"}
        with pytest.raises(MidsightError, match=f"no column 'nope'; it has 'img'.*: choose one with {role}_column\\."):
            read_table(path, DatasetOptions(**columns))


def test_a_column_with_a_chosen_role_gets_no_second_one(jsonl):
    path = jsonl({"id": "a.png", "answer": "b?"}, {"id": "a.png", "answer": "b?"})
    dataset = read_table(path, DatasetOptions(image_column="id", question_column="answer"))
    assert [sample.sample_id for sample in dataset.samples] == [make_sample_id(row, "a.png", "b?") for row in (0, 1)]
    assert [sample.reference_answers for sample in dataset.samples] == [(), ()]
    assert dataset.extras == {}


def test_ids_are_text_and_rows_without_one_get_a_made_id(jsonl):
    dataset = read_table(jsonl({**PAIR, "id": 7}, PAIR, {**PAIR, "id": None}, {**PAIR, "id": " "}, {**PAIR, "id": "x"}))
    made = [make_sample_id(index, "a.png", "What is it?") for index in range(5)]
    assert [sample.sample_id for sample in dataset.samples] == ["7", *made[1:4], "x"]
    assert "id" not in dataset.extras


@pytest.mark.parametrize(
    "ids", [("x", "x"), (7, "7"), ("x", "y", "x"), (None, make_sample_id(0, PAIR["image"], PAIR["question"]))]
)
def test_ids_that_repeat_are_refused_with_both_lines(jsonl, ids):
    path = jsonl("", *({**PAIR, "id": given} for given in ids))
    with pytest.raises(MidsightError, match=f"twice, in line 2 and line {len(ids) + 1}") as refusal:
        read_table(path, DatasetOptions(id_column="id"))
    assert repr(str(ids[-1])) in str(refusal.value)
    guessed = read_table(path)
    assert [sample.sample_id for sample in guessed.samples] == [
        make_sample_id(index, PAIR["image"], PAIR["question"]) for index in range(len(ids))
    ]
    assert [sample.extras["id"] for sample in guessed.samples] == list(ids)
    assert guessed.options["id_column"] is None
    assert guessed.notes == (
        f"{path} has the id {str(ids[-1])!r} twice, in line 2 and line {len(ids) + 1}, so its rows get ids of their "
        "own, and 'id' is kept as an extra.",
    )


def test_the_id_of_a_failed_row_must_be_unique_too(jsonl):
    with pytest.raises(MidsightError, match="'x' twice, in line 1 and line 2"):
        read_table(jsonl({**PAIR, "id": "x"}, {**PAIR, "id": "x", "question": ""}), DatasetOptions(id_column="id"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Yes.", ("Yes.",)),
        (["a", "b"], ("a", "b")),
        (None, ()),
        ([], ()),
        ("", ()),
        (3, ("3",)),
        (2.5, ("2.5",)),
        (True, ("true",)),
        ([1, None, "ä", False], ("1", "ä", "false")),
        ({"text": "ä"}, ('{"text": "ä"}',)),
        ([{"answer": "ä", "answer_id": 1}, {"answer": 2.0}, {"answer": None}], ("ä", "2")),
        ([["a"]], ('["a"]',)),
    ],
)
def test_answers_are_texts(jsonl, value, expected):
    assert read_table(jsonl({**PAIR, "answers": value})).samples[0].reference_answers == expected


def test_lists_of_dates_and_decimals_are_texts(tmp_path):
    answers = [[datetime.date(2020, 1, 2)], [decimal.Decimal("1.50")], None]
    tables = [pa.table({"image": ["a.png"], "question": ["q"], "answers": [each]}) for each in answers]
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{number}.parquet")
    told = [read_table(tmp_path / f"{number}.parquet").samples[0].reference_answers for number in range(3)]
    assert told == [("2020-01-02",), ("1.50",), ()]


def test_answer_comes_before_answers(jsonl):
    dataset = read_table(jsonl({**PAIR, "answers": ["b"], "answer": "a"}))
    assert dataset.samples[0].reference_answers == ("a",)
    assert dataset.extras == {"answers": "json"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["true", "false"], "bool"),
        (["1", "-9223372036854775808", "9223372036854775807"], "int64"),
        (["9223372036854775808"], "json"),
        (["1", "2.5"], "float64"),
        (["1", "NaN", "-Infinity", "1e999"], "float64"),
        (["9007199254740993", "2.5"], "json"),
        (['"a"', '""'], "string"),
        (['"1"', "1"], "json"),
        (["true", "1"], "json"),
        (["[1]"], "json"),
        (['{"a": 1}', '"a"'], "json"),
        (["null", "1"], "int64"),
        (["null", "null"], "string"),
    ],
)
def test_the_type_of_an_extra_column_holds_all_its_values(jsonl, values, expected):
    rows = [json.dumps(PAIR)[:-1] + f', "extra": {value}}}' for value in values]
    dataset = read_table(jsonl(*rows, PAIR))
    assert dataset.extras == {"extra": expected}
    kept = [sample.extras["extra"] for sample in dataset.samples[:-1]]
    assert list(map(repr, kept)) == [repr(json.loads(value)) for value in values]
    assert "extra" not in dataset.samples[-1].extras


def test_a_limit_keeps_the_first_rows_and_the_hash_of_the_whole_file(jsonl, csv_file):
    path = jsonl({**PAIR, "n": 1}, "broken", {**PAIR, "n": "text", "id": "q"}, "broken too")
    dataset = read_table(path, limit=2)
    assert (dataset.rows, len(dataset.samples), len(dataset.failures)) == (2, 1, 1)
    assert dataset.extras == {"n": "int64"}
    assert dataset.sha256 == read_table(path).sha256
    assert read_table(csv_file("image,question\na,b\nc,d\ne,f\n"), limit=2).rows == 2
    assert read_table(path, limit=99).rows == 4
    with pytest.raises(MidsightError, match="limit is 0; give 1 or more"):
        read_table(path, limit=0)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["image", "question", "answer", "answers", "id", "extra"]) | st.text(max_size=3)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=5)
GOOD = st.fixed_dictionaries({"image": st.text(min_size=1), "question": st.text(min_size=1)})
JSONL_LINES = (OBJECTS | GOOD | st.builds(lambda a, b: {**a, **b}, OBJECTS, GOOD) | VALUES).map(json.dumps).map(
    str.encode
) | st.binary(max_size=40)


def assert_nothing_is_lost(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            dataset = read_table(path)
        except MidsightError:
            return
    rows = sorted((*dataset.samples, *dataset.failures), key=lambda row: row.input_index)
    assert [row.input_index for row in rows] == list(range(dataset.rows))
    assert len({row.sample_id for row in rows}) == dataset.rows
    for group in (dataset.samples, dataset.failures):
        assert [row.input_index for row in group] == sorted(row.input_index for row in group)
    for failure in dataset.failures:
        failure.reason.encode()
        failure.sample_id.encode()
    for sample in dataset.samples:
        stored = [sample.sample_id, sample.image, sample.question, sample.reference_answers, dict(sample.extras)]
        json.dumps(stored, ensure_ascii=False).encode()
        assert sample.question.strip()
        assert sample.images
        assert set(sample.extras) <= set(dataset.extras)


@given(st.lists(JSONL_LINES, max_size=6))
def test_whatever_jsonl_holds_each_row_is_a_sample_or_a_failure(lines):
    assert_nothing_is_lost("data.jsonl", b"\n".join([json.dumps(PAIR).encode(), *lines]))


@given(st.lists(st.lists(st.text(max_size=6), max_size=4).map(",".join) | st.text(max_size=20), max_size=6))
def test_whatever_csv_holds_each_row_is_a_sample_or_a_failure(lines):
    text = "\n".join(["image,question,extra", *lines])
    assert_nothing_is_lost("data.csv", text.encode())


def test_pairs_from_python_become_samples(tmp_path):
    image = Image.new("RGB", (2, 2))
    dataset = make_samples([("../a.png", "b?"), (tmp_path / "c.png", "d?"), (image, "e?"), (b"encoded", "f?")])
    assert [sample.image for sample in dataset.samples] == ["../a.png", str(tmp_path / "c.png"), "", ""]
    assert [sample.images for sample in dataset.samples] == [
        (Path("../a.png"),),
        (tmp_path / "c.png",),
        (image,),
        (b"encoded",),
    ]
    assert dataset.samples[2].sample_id == make_sample_id(2, "", "e?")
    assert (dataset.path, dataset.rows, dataset.extras) == (None, 4, {})


def test_samples_from_python_keep_their_ids_and_get_their_position():
    given_sample = Sample("mine", 90, (Path("a.png"), Path("b.png")), "What?", extras={"n": 3})
    dataset = make_samples([("c.png", "d?"), given_sample])
    assert dataset.samples[1].sample_id == "mine"
    assert dataset.samples[1].input_index == 1
    assert dataset.samples[1].images == given_sample.images
    assert dataset.extras == {"n": "int64"}


def test_the_hash_of_pairs_covers_images_questions_and_order():
    pairs = [("a.png", "b?"), ("c.png", "d?")]
    hashes = {
        make_samples(given_pairs).sha256
        for given_pairs in (
            pairs,
            pairs[::-1],
            pairs[:1],
            [("a.png", "b?"), ("x.png", "d?")],
            [("a.png", "x?"), pairs[1]],
        )
    }
    assert len(hashes) == 5
    assert make_samples(iter(pairs)).sha256 == make_samples(pairs).sha256


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (("a.png", "  "), "Item 1: the question is empty"),
        (("a.png", "\ud800"), "half of a surrogate pair"),
        (("\udcff.png", "b?"), "half of a surrogate pair"),
        (Sample("x", 0, (), "b?"), "there is no image"),
        (Sample("x", 0, (b"",), "b?", extras={"n": object()}), "cannot be stored"),
    ],
)
def test_bad_pairs_fail_and_the_others_are_kept(sample, reason):
    dataset = make_samples([("a.png", "b?"), sample, ("a.png", "c?")])
    assert reason in only_failure(dataset)
    assert [kept.input_index for kept in dataset.samples] == [0, 2]


@pytest.mark.parametrize("item", ["a.png", ("a.png",), ("a.png", 5), (5, "b?"), {"image": "a"}, None, ("a", "b", "c")])
def test_an_item_that_is_not_a_pair_is_refused(item):
    with pytest.raises(MidsightError, match=r"Item 1 is .*give \(image, question\) pairs"):
        make_samples([("a.png", "b?"), item])


def test_ids_that_repeat_among_given_samples_are_refused():
    sample = Sample("x", 0, (b"",), "b?")
    with pytest.raises(MidsightError, match="'x' twice, in item 0 and item 2"):
        make_samples([sample, ("a.png", "b?"), sample])


def test_reading_tables_needs_neither_torch_nor_transformers():
    program = "import sys, midsight.samples.tables; print(*{'torch', 'transformers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == ""


def test_files_on_a_disk_are_read_one_after_the_other_and_by_this_thread(tmp_path, monkeypatch):
    """Many at a time would make a disk seek, and Ctrl-C would wait for all of them."""
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text('{"image": "a.png", "question": "Q"}\n')
    threads = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: threads.append(threading.get_ident()) or original(*a))
    read_table(tmp_path)
    assert threads == [threading.get_ident()] * 3

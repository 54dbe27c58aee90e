"""One table in many forms gives the same samples; and what a form of its own needs."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midsight.errors import MidsightError
from midsight.samples import json_rows, json_shape, text_files, webdataset
from midsight.samples.images import decode_image
from midsight.samples.options import DatasetOptions
from midsight.samples.rows import WRITTEN_NULLS, read_lines
from midsight.samples.tables import make_samples, read_table
from support.forms import ROWS, WRITERS, add_member, content, lines, write
from support.made_tables import ENCODED, PICTURES, text
from support.prompting import read_good

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(str.strip).filter(bool)
QUESTION = TEXT.filter(lambda text: text not in WRITTEN_NULLS)
"""Those texts are missing questions in every form."""
TABLES = st.lists(
    st.fixed_dictionaries({"id": TEXT, "image": st.just("a.png"), "question": QUESTION, "answer": TEXT, "n": TEXT}),
    min_size=1, max_size=5, unique_by=lambda row: row["id"],
)  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(TABLES, st.sampled_from([*WRITERS, "a.parquet", "a.jsonl.gz", "a.csv.xz"]))
def test_a_table_gives_the_same_samples_in_any_two_forms(rows, form):
    if any(row["id"].removesuffix(".0").isdecimal() for row in rows):
        return  # 1.0 is 1 where text cannot tell, in CSV
    with tempfile.TemporaryDirectory() as folder:
        first = read_good(write(Path(folder), "a.jsonl", rows))
        (Path(folder) / "other").mkdir()
        second = read_good(write(Path(folder) / "other", form, rows), images=folder)
        assert content(first) == content(second)
        assert [sample.images for sample in first.samples] == [sample.images for sample in second.samples]


@pytest.mark.parametrize("form", ["shards", "a.jsonl.gz", "by_id.json"])
def test_other_forms_of_the_table_give_the_same_samples(tmp_path, form):
    expected = content(read_good(write(tmp_path, "a.jsonl", ROWS)))
    (tmp_path / "other").mkdir()
    path = write(tmp_path / "other", form, ROWS)
    assert content(read_good(path)) == expected
    if form == "shards":
        assert content(read_good(path / "*.jsonl")) == expected
        assert content(read_good(tmp_path / "ot*" / "shards" / "part-*.jsonl")) == expected


@pytest.mark.parametrize("form", ["a.jsonl.gz", "data.json", "by_id.json", "semicolon.csv"])
def test_images_inside_are_read_again_where_they_are(tmp_path, form):
    rows = [{**row, "image": text(ENCODED[i])} for i, row in enumerate(ROWS)]
    dataset = read_good(write(tmp_path, form, rows))
    for index in (2, 0, 1):
        assert np.array_equal(np.asarray(decode_image(dataset.samples[index].images[0])), np.asarray(PICTURES[index]))


def test_webdataset_shards(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05}.tar", "w") as archive:
            for number in range(2):
                index = 2 * shard + number
                add_member(archive, f"d/{number}.jpg", ENCODED[index])
                add_member(archive, f"d/{number}.json", json.dumps({"question": f"What is {index}?"}).encode())
                add_member(archive, f"d/{number}.txt", b" caption \n")
    dataset = read_good(tmp_path)
    assert [sample.question for sample in dataset.samples] == [f"What is {i}?" for i in range(4)]
    assert [sample.extras for sample in dataset.samples[1:3]] == [
        {"__key__": "d/1", "txt": "caption"}, {"__key__": "d/0", "txt": "caption"},
    ]  # fmt: skip
    for sample, image in zip(dataset.samples, PICTURES, strict=False):
        assert np.array_equal(np.asarray(decode_image(sample.images[0])), np.asarray(image))
    assert "the id 'd/0' twice" in dataset.notes[0]
    one = read_good(tmp_path / "00001.tar", question_column="txt")
    assert [(s.sample_id, s.question) for s in one.samples] == [("d/0", "caption"), ("d/1", "caption")]


def test_several_lists_are_splits(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS[:1], "val": ROWS[1:]}))
    with pytest.raises(MidsightError, match="has several splits; choose one of 'train', 'val' with split"):
        read_table(tmp_path / "a.json")
    assert read_good(tmp_path / "a.json", split="val").rows == 2
    (tmp_path / "folder").mkdir()
    for split in ("train", "test"):
        write(tmp_path, "a.jsonl", ROWS).rename(tmp_path / "folder" / f"{split}.jsonl")
    with pytest.raises(MidsightError, match="choose one of 'test', 'train' with split"):
        read_table(tmp_path / "folder")
    assert read_good(tmp_path / "folder", split="test").rows == 3


def test_one_row_is_not_taken_for_a_table(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    (tmp_path / "a.json").write_text(json.dumps({"id": "1", "image": "a.png", "conversations": turns}))
    (sample,) = read_good(tmp_path / "a.json").samples
    assert (sample.question, sample.reference_answers) == ("What?", ("A dog.",))


@pytest.mark.parametrize(
    "columns", [{"image": {"0": "a.png"}, "question": {"0": "b"}}, {"image": ["a"], "question": ["b"]}]
)
def test_a_table_written_by_columns_is_refused_with_the_remedy(tmp_path, columns):
    (tmp_path / "a.json").write_text(json.dumps(columns))
    with pytest.raises(MidsightError, match=r"holds columns, not rows; with pandas, write to_json\(\.\.\., orient="):
        read_table(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.xlsx", "save the sheet as CSV"), ("a.pkl", "such files can run code"), ("a.zip", "unpack it"),
     ("a.tar.gz", r"unpack it to a \.tar file"), ("a.parquet.gz", "supported are"), ("a.txt", "write CSV"),
     ("a.JPG", "an image needs a table")],
)  # fmt: skip
def test_what_is_not_read_is_refused_with_the_remedy(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(MidsightError, match=f"is not a supported table; {said}"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"x" + data[21:], lambda _: b"no"])
def test_a_damaged_compressed_file_is_refused(tmp_path, damage):
    path = write(tmp_path, "a.jsonl.gz", [{**ROWS[0], "n": i, "id": i} for i in range(500)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MidsightError, match=r"a\.jsonl\.gz cannot be read: "):
        read_table(path)


def test_a_large_wrong_table_is_refused_from_its_first_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", 1000)
    monkeypatch.setattr("midsight.samples.sources.ROWS_LOOKED_AT", 3)
    (tmp_path / "a.jsonl").write_text('{"image": "a.png"}\n' * 100 + "broken")
    with pytest.raises(MidsightError, match="no column 'question'; it has 'image'"):
        read_table(tmp_path / "a.jsonl")


class TestLargeObjects:
    """JSON objects of which only the beginning decides whether they are refused."""

    @pytest.fixture
    def bytes_read(self, monkeypatch):
        """How many bytes of JSON were read, call by call; the limits are those of a small file."""
        monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", 1000)
        monkeypatch.setattr("midsight.samples.sources.ROWS_LOOKED_AT", 3)
        monkeypatch.setattr(json_shape, "BYTES_LOOKED_AT", 4000)
        monkeypatch.setattr(json_shape, "BYTES_WITHOUT_ROWS", 20_000)
        read = []

        class Counting(io.BytesIO):
            def read(self, size=-1):
                data = super().read(size)
                read.append(len(data))
                return data

        for module in (json_rows, json_shape):
            monkeypatch.setattr(module, "_CHUNK_BYTES", 1000)
            monkeypatch.setattr(module, "open_bytes", lambda path: Counting(path.read_bytes()))
        return read

    def write(self, tmp_path, **lists):
        (tmp_path / "a.json").write_text(json.dumps({"info": {"year": 2017}, "licenses": [{"n": 1}], **lists}))
        return tmp_path / "a.json"

    def test_a_list_of_any_name_is_refused_from_its_first_rows(self, tmp_path, bytes_read):
        path = self.write(tmp_path, annotations=[{"image": "a.png", "caption": n} for n in range(10_000)])
        with pytest.raises(
            MidsightError,
            match=r"no column 'question'; it has 'image', 'caption': choose one with question_column, or another "
            r"list than 'annotations' with split\.$",
        ):
            read_table(path)
        assert sum(bytes_read) < 20_000 < path.stat().st_size / 10

    def test_a_list_inside_two_objects_too(self, tmp_path, bytes_read):
        rows = [{"image_id": n, "caption": "red"} for n in range(10_000)]
        (tmp_path / "a.json").write_text(json.dumps({"data": {"annotations": rows}, "n": 1}))
        with pytest.raises(MidsightError, match=r"or another list than 'data\.annotations' with split\.$"):
            read_table(tmp_path / "a.json")
        assert sum(bytes_read) < 20_000

    def test_a_file_of_answers_too(self, tmp_path, bytes_read):
        path = self.write(tmp_path, annotations=[{"image_id": n, "answer": "red"} for n in range(10_000)])
        (tmp_path / "q.jsonl").write_text(lines([{"image": "a.png", "question": "?", "n": 1}]))
        with pytest.raises(MidsightError, match="no column 'n'; it has 'image_id', 'answer': choose one with on"):
            read_table(tmp_path / "q.jsonl", DatasetOptions(answers_from=path, on="n"))
        assert sum(bytes_read) < 20_000

    @pytest.mark.parametrize(
        "before",
        [
            {"blob": "x" * 300_000},
            {"numbers": [[0] * 100] * 1000},
            {"deep": {"a": {"b": [{"n": [{"x": n}]} for n in range(10_000)]}}},
            {"texts": ["a, {b"] * 30_000, "n": 1},
        ],
        ids=["a text", "numbers", "an object", "texts"],
    )
    def test_without_a_list_of_rows_at_the_beginning_too(self, tmp_path, bytes_read, before):
        (tmp_path / "a.json").write_text(json.dumps({**before, "rows of it": ROWS}))
        with pytest.raises(
            MidsightError,
            match=r"no list of rows in its first 0 MB; name the list with split, or write its rows as JSON Lines\.$",
        ):
            read_table(tmp_path / "a.json")
        assert sum(bytes_read) < 50_000
        assert read_good(tmp_path / "a.json", split="rows of it").rows == 3

    def test_rows_by_id_that_are_large_too(self, tmp_path, bytes_read):
        rows = {f"r{n}": {"image": "a.png", "caption": "x" * 5000} for n in range(50)}
        (tmp_path / "a.json").write_text(json.dumps(rows))
        with pytest.raises(MidsightError, match="no column 'question'; it has 'id', 'image', 'caption'"):
            read_table(tmp_path / "a.json")
        assert sum(bytes_read) < 60_000
        asked = {name: {**row, "question": "?"} for name, row in rows.items()}
        (tmp_path / "a.json").write_text(json.dumps(asked))
        assert [sample.sample_id for sample in read_good(tmp_path / "a.json").samples] == [*rows]

    def test_rows_that_are_large_too(self, tmp_path, bytes_read, monkeypatch):
        monkeypatch.setattr("midsight.samples.sources.BYTES_WITHOUT_ROWS", 20_000)
        monkeypatch.setattr("midsight.samples.sources.ROWS_LOOKED_AT", 1000)
        rows = [{"image": "a.png", "caption": "x" * 5000} for _ in range(50)]
        for text_of_rows in (json.dumps(rows), lines(rows)):
            bytes_read.clear()
            (tmp_path / "a.json").write_text(text_of_rows)
            with pytest.raises(MidsightError, match="no column 'question'; it has 'image', 'caption'"):
                read_table(tmp_path / "a.json")
            assert sum(bytes_read) < 60_000

    def test_many_members_of_another_object_do_not_hide_the_list(self, tmp_path):
        whole = {"info": {f"k{n}": n for n in range(200)}, "data": ROWS}
        (tmp_path / "a.json").write_text(json.dumps(whole))
        assert read_good(tmp_path / "a.json").rows == 3

    def test_the_named_list_is_found_behind_others(self, tmp_path, bytes_read):
        images = [{"image_id": n} for n in range(1000)]
        path = self.write(tmp_path, images=images, val=ROWS, test=ROWS[:1])
        assert read_good(path, split="val").rows == 3

    def test_where_the_beginning_suits_all_lists_are_looked_at(self, tmp_path, bytes_read):
        path = self.write(tmp_path, train=ROWS * 100, val=ROWS)
        with pytest.raises(MidsightError, match="has several splits; choose one of 'licenses', 'train', 'val' with"):
            read_table(path)
        assert read_good(self.write(tmp_path, images=[{"n": 1}], questions=ROWS * 100), id_column="none").rows == 300


def test_a_large_table_without_a_column_of_the_prompt_is_refused_from_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", 100)
    (tmp_path / "a.csv").write_text("image,question,hint\n" + "a.png,?,x\n" * 100)
    seen = []

    def refuse(columns):
        seen.append(columns)
        raise MidsightError("no")

    monkeypatch.setattr("midsight.samples.tables.open_table", None)
    with pytest.raises(MidsightError, match=r"^no$"):
        read_table(tmp_path / "a.csv", accept=refuse)
    assert seen == [{"image": "image", "question": "question", "hint": "extra"}]


@pytest.mark.parametrize("form", ["a folder", "a pattern", "compressed"])
def test_large_shards_are_refused_from_their_first_rows(tmp_path, monkeypatch, form):
    monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", 10_000)
    monkeypatch.setattr("midsight.samples.sources.ROWS_LOOKED_AT", 3)
    opened = []
    monkeypatch.setattr(json_rows, "open_bytes", lambda path: (opened.append(path), text_files.open_bytes(path))[1])
    for number in range(20):
        data = ('{"image": "a.png"}\n' * 100 + "broken").encode()
        name = f"{number:02}.jsonl" + (".gz" if form == "compressed" else "")
        (tmp_path / name).write_bytes(gzip.compress(data) if form == "compressed" else data)
    path = {"a folder": tmp_path, "a pattern": tmp_path / "*.jsonl", "compressed": tmp_path / "00.jsonl.gz"}[form]
    monkeypatch.setattr("midsight.samples.sources.COMPRESSION", 1000)
    with pytest.raises(MidsightError, match="no column 'question'; it has 'image'"):
        read_table(path)
    assert len(opened) == (1 if form == "compressed" else 8)


def test_a_long_first_line_is_not_a_header_and_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("midsight.samples.delimited.MAX_HEADER_BYTES", 100)
    (tmp_path / "a.csv").write_text("image,question" + ",x" * 1000 + "\na.png,?\n")
    with pytest.raises(MidsightError, match="has a bad header: it has more than 100 bytes"):
        read_table(tmp_path / "a.csv")


def test_a_large_file_of_one_line_is_refused_without_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("midsight.samples.rows.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", 1000)
    monkeypatch.setattr("midsight.samples.sources.BYTES_WITHOUT_ROWS", 500)
    (tmp_path / "a.jsonl").write_text("x" * 1_000_000)
    monkeypatch.setattr("midsight.samples.rows.skip_rest", None)
    with pytest.raises(MidsightError, match=r"has no row with values, .*; line 1: it has more than 1,000 bytes"):
        read_table(tmp_path / "a.jsonl")


def test_a_line_that_is_too_long_is_passed_over_only_for_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("midsight.samples.rows.MAX_ROW_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text("x" * 100_000 + "\n" + lines(ROWS))
    with (tmp_path / "a.jsonl").open("rb") as file:
        read = read_lines(file, tmp_path)
        assert len(next(read)[2]) == 1001
        assert file.tell() == 1001
        assert next(read)[:2] == (2, 100_001)


def test_a_large_tar_without_questions_is_refused_from_its_first_members(tmp_path, monkeypatch):
    monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", 1000)
    monkeypatch.setattr("midsight.samples.webdataset.MEMBERS_LOOKED_AT", 10)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(100):
            add_member(archive, f"{number}.jpg", ENCODED[0])
            add_member(archive, f"{number}.json", b'{"caption": "a"}' if number < 99 else b"broken")
    read = []
    monkeypatch.setattr(webdataset, "read_cells", lambda data: (read.append(data), json_rows.read_cells(data))[1])
    with pytest.raises(MidsightError, match="no column 'question'; it has '__key__', 'caption', 'jpg'"):
        read_table(tmp_path / "a.tar")
    assert len(read) == 5


def test_files_that_a_folder_or_a_pattern_leaves_out_are_said(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("b.jsonl", "c.csv", "d.csv", "README", "dataset_infos.json", ".hidden", "0.png"):
        (tmp_path / name).write_text(lines(ROWS))
    note = f"{tmp_path} leaves out 5 of its files: 2 *.csv, 1 *.jsonl, 1 without suffix, 1 *.json."
    (said,) = read_good(tmp_path).notes
    assert sorted(said) == sorted(note)
    assert said.startswith(f"{tmp_path} leaves out 5 of its files: 2 *.csv, ")
    (tmp_path / "data").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "data" / "a.parquet")
    for name in ("b.jsonl", "c.csv", "d.csv"):
        (tmp_path / name).unlink()
    assert read_good(tmp_path).rows == 3
    for name in ("e.jsonl", "e.txt"):
        (tmp_path / name).write_text(lines(ROWS))
    assert read_good(tmp_path / "e*").notes == (f"{tmp_path / 'e*'} leaves out 1 of its files: 1 *.txt.",)


@pytest.mark.parametrize("name", ["prüfung", "val/hard", 'a "b"', "dev"])
def test_a_split_is_found_however_its_name_is_spelled(tmp_path, name):
    content = {name: ROWS, "data": [{"image": "a.png", "question": "Other?"}]}
    escaped = json.dumps(content)
    for written in (escaped, json.dumps(content, ensure_ascii=False), escaped.replace("/", "\\/")):
        path = tmp_path / "a.json"
        path.write_text(written, encoding="utf-8")
        found = read_table(path, DatasetOptions(split=name))
        assert [sample.question for sample in found.samples] == [row["question"] for row in ROWS]
        with pytest.raises(MidsightError, match=f"no split 'ö'; choose one of {re.escape(repr(name))}, 'data' with"):
            read_table(path, DatasetOptions(split="ö"))


def test_a_split_that_is_nowhere_in_a_large_file_is_refused_by_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(json_shape, "BYTES_LOOKED_AT", 1000)
    path, read = tmp_path / "a.json", []
    path.write_text(json.dumps({"train": [{"image": "a.png", "question": "What?"}] * 100, "val": ROWS}))
    monkeypatch.setattr(json_shape, "_CHUNK_BYTES", 1000)
    tokens = json_shape._tokens

    def watched(*given):
        for token in tokens(*given):
            read.append(token[1])
            yield token

    monkeypatch.setattr(json_shape, "_tokens", watched)
    with pytest.raises(MidsightError, match="has no split 'test'; choose one of 'train' with split"):
        read_table(path, DatasetOptions(split="test"))
    assert max(read) < path.stat().st_size / 2
    for split in ("val", "train"):  # names may lie across two chunks
        for size in range(20, 60):
            monkeypatch.setattr(json_shape, "_CHUNK_BYTES", size)
            assert json_shape._is_named(path, split)
            assert not json_shape._is_named(path, f"{split}s")
    assert read_good(path, split="val").rows == len(ROWS)


def test_a_split_that_is_not_there_is_refused_whatever_the_lists_are_called(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"data": ROWS[:1], "train": ROWS[1:]}))
    assert read_good(tmp_path / "a.json").rows == read_good(tmp_path / "a.json", split="data").rows == 1
    assert read_good(tmp_path / "a.json", split="train").rows == 2
    with pytest.raises(MidsightError, match="has no split 'val'; choose one of 'data', 'train' with split"):
        read_table(tmp_path / "a.json", DatasetOptions(split="val"))


def test_names_in_another_case_and_with_spaces_are_found_and_said(tmp_path):
    (tmp_path / "a.csv").write_text(" Image ,QUESTION,Answer,A b\na.png,What?,yes,1\n")
    dataset = read_good(tmp_path / "a.csv")
    assert content(dataset)[0][1:] == ("a.png", "What?", ("yes",), {"A b": "1"})
    assert dataset.notes == tuple(
        f"The column {name!r} is taken as the {role}."
        for name, role in (("QUESTION", "question"), (" Image ", "image"), ("Answer", "answer"))
    )
    assert read_good(tmp_path / "a.csv", question_column="a_b").samples[0].question == "1"
    (tmp_path / "a.csv").write_text("image,prompt,Question\na.png,Be brief.,What?\n")
    assert read_good(tmp_path / "a.csv").samples[0].question == "What?"


def test_several_image_columns_in_order_with_nulls_left_out(tmp_path):
    cells = [("a.png", None), ("", "b.png"), ("a.png", ["c.png", "b.png"]), (None, None)]
    rows = [{"left": left, "right": right, "question": "?"} for left, right in cells]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    dataset = read_table(tmp_path / "a.jsonl", DatasetOptions(image_column=("right", "left")))
    assert [sample.image for sample in dataset.samples] == ["a.png", "b.png", '["c.png", "b.png", "a.png"]']
    assert "there is no image (columns 'right', 'left')" in dataset.failures[0].reason
    assert dataset.options["image_column"] == '["right", "left"]'


def test_a_pattern_makes_the_paths_of_images(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines([{"image_id": 42, "question": "?"}, {"image_id": None, "question": "?"}]))
    dataset = read_table(tmp_path / "a.jsonl", DatasetOptions(image_column="COCO_{image_id:012}.jpg"))
    assert dataset.samples[0].image == "COCO_000000000042.jpg"
    assert dataset.samples[0].extras == {"image_id": 42}
    assert "the column 'image_id', which names the image, is null" in dataset.failures[0].reason
    with pytest.raises(MidsightError, match=r"no column 'img'; it has 'image_id', 'question'"):
        read_table(tmp_path / "a.jsonl", DatasetOptions(image_column="{img}.jpg"))


def test_ids_are_text_of_numbers_and_none_means_none(tmp_path):
    for form in ("a.jsonl", "a.csv"):
        rows = [{"id": given, "image": "a.png", "question": "?"} for given in (1.0, 2.0, "x.0")]
        write(tmp_path, form, rows)
        assert [sample.sample_id for sample in read_good(tmp_path / form).samples] == ["1", "2", "x.0"]
    dataset = read_good(tmp_path / "a.csv", id_column="none")
    assert dataset.options["id_column"] is None
    assert dataset.extras == {"id": "string"}


class TestAnswersFrom:
    """Answers that are in a file of their own."""

    def write(self, tmp_path, answers):
        (tmp_path / "q.json").write_text(json.dumps({"questions": [{"n": i, **ROWS[i]} for i in range(3)]}))
        (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
        return tmp_path / "q.json", {"answers_from": tmp_path / "a.json", "on": "n"}

    def test_they_are_joined_with_the_other_columns(self, tmp_path):
        answers = [{"n": 1.0, "answers": [{"answer": "net", "answer_id": 1}, {"answer": "nets"}], "kind": "other"},
                   {"n": "0", "answers": [{"answer": "dog"}], "kind": "pets", "image": "not this.png"}]  # fmt: skip
        path, options = self.write(tmp_path, answers)
        dataset = read_good(path, **options)
        assert [sample.reference_answers for sample in dataset.samples] == [("dog",), ("net", "nets"), ()]
        assert [sample.extras.get("kind") for sample in dataset.samples] == ["pets", "other", None]
        assert [sample.image for sample in dataset.samples] == ["0.png", "1.png", "2.png"]
        assert dataset.notes[0] == f"1 of 3 rows has no answer in {tmp_path / 'a.json'}."
        before = dataset.sha256
        self.write(tmp_path, [{**answers[0], "answers": []}, answers[1]])
        assert read_good(path, **options).sha256 != before

    @pytest.mark.parametrize(
        ("answers", "options", "said"),
        [
            ([{"n": 1, "answer": "a"}, {"n": "1", "answer": "b"}], {}, r"has '1' twice in 'n'; choose another column"),
            ([{"n": 7, "answer": "a"}], {}, r"No row of .* has the n of one in .*a\.json; choose another on"),
            ([{"m": 1, "answer": "a"}], {}, r"a\.json has no column 'n'; it has 'm', 'answer': choose one with on"),
            ([{"n": 1, "reply": "a"}], {}, r"no column of answers that is known; it has 'n', 'reply': choose one with"),
            (
                [{"n": 1, "answer": "a"}],
                {"on": None},
                r"^answers_from needs the column that both files have; .* with on",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, answers, options, said):
        path, joined = self.write(tmp_path, answers)
        with pytest.raises(MidsightError, match=said):
            read_table(path, DatasetOptions(**{**joined, **options}))

    def test_the_column_may_have_two_names(self, tmp_path):
        path, joined = self.write(tmp_path, [{"m": 1, "reply": "a"}])
        dataset = read_good(path, **{**joined, "on": "n=m", "answer_column": "reply"})
        assert [sample.reference_answers for sample in dataset.samples] == [(), ("a",), ()]

    def test_its_name_may_be_spelled_in_another_way_and_floats_are_whole_numbers(self, tmp_path):
        (tmp_path / "q.csv").write_text("image,question,Question ID,answer\na.png,What?,1.0,own\na.png,Who?,2.0,own\n")
        (tmp_path / "a.json").write_text(json.dumps([{"question_id": 1, "Answer": "dog"}]))
        dataset = read_good(tmp_path / "q.csv", answers_from=tmp_path / "a.json", on="question_id")
        assert [sample.reference_answers for sample in dataset.samples] == [("dog",), ()]


def test_a_space_after_each_separator_is_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("image, question, answer\na.png, What is it?, a dog\n")
    (sample,) = read_good(tmp_path / "a.csv").samples
    assert (sample.question, sample.reference_answers) == ("What is it?", ("a dog",))


@pytest.mark.parametrize("text", ["nan", " NaN", "<NA>"])
def test_a_missing_question_that_became_text_is_not_asked(tmp_path, text):
    (tmp_path / "a.csv").write_text(f"image,question\na.png,{text}\na.png,What?\n")
    dataset = read_table(tmp_path / "a.csv")
    assert [sample.question for sample in dataset.samples] == ["What?"]
    assert dataset.failures[0].reason.endswith(", as pandas writes a missing value.")


def test_numbered_images_beside_image_are_used_or_said(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines([{"image": "a.png", "image_3": "c.png", "image_2": None, "question": "?"}]))
    dataset = read_good(tmp_path / "a.jsonl")
    assert [sample.image for sample in dataset.samples] == ['["a.png", "c.png"]']
    assert dataset.notes == ("The images of each row are in 'image', 'image_2', 'image_3', in this order.",)
    (tmp_path / "a.jsonl").write_text(lines([{"image": "a.png", "image_512": "b.png", "question": "?"}]))
    dataset = read_good(tmp_path / "a.jsonl")
    assert ([sample.image for sample in dataset.samples], dataset.extras) == (["a.png"], {"image_512": "string"})
    assert dataset.notes == ("The image is in 'image'; not used as images: 'image_512'.",)


def test_a_failed_row_of_shards_names_its_file_and_its_row_there(tmp_path):
    rows = [{"image": "a.png", "question": "?"}, {"image": "a.png", "question": ""}]
    for folder in ("text", "parquet", "tar"):
        (tmp_path / folder).mkdir()
    for shard in ("1", "2"):
        (tmp_path / "text" / f"{shard}.jsonl").write_text("\n" + lines(rows))
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / f"{shard}.parquet")
        with tarfile.open(tmp_path / "tar" / f"{shard}.tar", "w") as archive:
            for i, row in enumerate(rows):
                add_member(archive, f"{shard}{i}.png", ENCODED[i])
                add_member(archive, f"{shard}{i}.question.txt", row["question"].encode())
    for folder, place in (("text", "2.jsonl, line 3"), ("parquet", "2.parquet, row 2"), ("tar", "2.tar, row 2")):
        dataset = read_table(tmp_path / folder, DatasetOptions(images=tmp_path))
        assert [sample.question for sample in dataset.samples] == ["?", "?"]
        assert dataset.failures[1].reason == f"{tmp_path / folder / place}: the question is empty."


def test_the_images_of_a_tar_row_are_in_the_order_of_their_numbers(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add_member(archive, "0.json", json.dumps({"question": "?"}).encode())
        for number in (10, 2, 1):
            add_member(archive, f"0.{number}.png", ENCODED[number % 5])
    (sample,) = read_good(tmp_path / "a.tar").samples
    assert [decode_image(image).size for image in sample.images] == [PICTURES[i].size for i in (1, 2, 0)]


@pytest.mark.parametrize(
    "cell",
    [{"src": "a.png"}, {"image": {"url": "a.png"}}, [{"type": "image_url", "image_url": {"url": "a.png"}}],
     {"path": "a.png", "url": "https://example.org/a.png"}],
)  # fmt: skip
def test_an_object_that_holds_an_image_is_that_image(tmp_path, cell):
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": cell, "question": "?"}))
    (sample,) = read_good(tmp_path / "a.jsonl").samples
    assert sample.images == (tmp_path.resolve() / "a.png",)


@pytest.mark.parametrize("name", ["base64", "b64_json", "url"])
def test_an_object_that_holds_base64_is_that_image(tmp_path, name):
    data = text(ENCODED[1])
    cell = {name: f"data:image/png;base64,{data}" if name == "url" else data}
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": cell, "question": "?"}))
    (sample,) = read_good(tmp_path / "a.jsonl").samples
    assert decode_image(sample.images[0]).size == PICTURES[1].size


def test_a_pattern_with_an_unknown_column_is_refused_as_a_pattern(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    with pytest.raises(
        MidsightError, match=r"^image_column is '{n:03}\.png', and .*a\.jsonl has no column 'n'; it has"
    ):
        read_table(tmp_path / "a.jsonl", DatasetOptions(image_column="{n:03}.png"))


def test_text_that_may_stand_for_an_image_is_said(tmp_path):
    questions = ["What?", '<img src="a.png"> What?', "<video>\nWhat?", "<image>\nIs a<b and b>c?"]
    (tmp_path / "a.jsonl").write_text(lines([{"image": "a.png", "question": question} for question in questions]))
    assert read_good(tmp_path / "a.jsonl").notes == (
        'In 2 of the questions, text may stand for an image or another file, like "<img src=\\"a.png\\">"; it stays '
        "in the prompt as words.",
    )


def test_pairs_take_addresses_data_uris_and_several_images():
    pairs = [
        ("https://example.org/a.png", "?"),
        (f"data:image/png;base64,{text(ENCODED[0])}", "?"),
        (["a.png", "b.png"], "?"),
    ]
    dataset = make_samples(pairs)
    assert [sample.image for sample in dataset.samples] == ["https://example.org/a.png", "", '["a.png", "b.png"]']
    assert dataset.samples[1].images == (ENCODED[0],)
    with pytest.raises(MidsightError, match="Item 0 is"):
        make_samples([([], "?")])

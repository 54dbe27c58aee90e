"""More files that people have: compressed under another name, unsorted, nested, as requests; and what is refused."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import struct
import sys
import tarfile
import zlib
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from midsight.errors import MidsightError
from midsight.samples.answers import reference_answers
from midsight.samples.choices import choices_of
from midsight.samples.images import MOST_NOTES, decode_image
from midsight.samples.options import DatasetOptions
from midsight.samples.sample import Sample
from midsight.samples.streams import stream_rows
from midsight.samples.tables import make_samples, read_memory, read_table
from support.forms import ROWS, WRITERS, add_member, content, write
from support.made_tables import ENCODED, PICTURES, STRUCT, as_struct, text, write_arrow
from support.pictures import encoded, picture
from support.prompting import prompts, read_good


def pixels(image):
    return np.asarray(decode_image(image)).tolist()


def same_picture(image, number):
    return pixels(image) == np.asarray(PICTURES[number]).tolist()


class TestCompressed:
    """Text that is compressed, whatever its name says."""

    @pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "data.json"])
    def test_the_content_decides(self, tmp_path, name, compress):
        expected = content(read_good(write(tmp_path, "a.jsonl", ROWS)))
        (tmp_path / "other").mkdir()
        suffix = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[compress]
        for path in (tmp_path / "other" / name, tmp_path / "other" / f"{name}{suffix}"):
            path.write_bytes(compress(WRITERS[name](ROWS).encode()))
            assert content(read_good(path)) == expected

    def test_images_inside_are_read_again(self, tmp_path):
        rows = [{**row, "image": text(ENCODED[i])} for i, row in enumerate(ROWS)]
        path = tmp_path / "a.jsonl"
        path.write_bytes(gzip.compress(WRITERS["a.jsonl"](rows).encode()))
        assert all(same_picture(s.images[0], i) for i, s in enumerate(read_good(path).samples))

    def test_text_with_a_name_of_compressed_text_is_refused_with_the_remedy(self, tmp_path):
        (tmp_path / "a.jsonl.gz").write_text(WRITERS["a.jsonl"](ROWS))
        with pytest.raises(MidsightError, match=r"not compressed as its name says; if it is text, take \.gz off its"):
            read_table(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("name", "begin", "said"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "fetch the file with git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "fetch the file with git lfs pull"),
        ("a.csv", b"\n<!DOCTYPE html><html>", "is a web page, .*; download it again"),
        ("a.json", b"PAR1....", r"holds Parquet data; name it \.parquet"),
        ("a.csv", b"PK\x03\x04....", "unpack it, or save the sheet as CSV"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd....", "decompress it with zstd -d"),
        ("a.tar", gzip.compress(b"x", mtime=0), "decompress it, with gunzip for example"),
    ],
)
def test_another_file_under_the_name_of_a_table_is_named(tmp_path, name, begin, said):
    (tmp_path / name).write_bytes(begin + bytes(20))
    with pytest.raises(MidsightError, match=rf"^{tmp_path / name} .*{said}\.$"):
        read_table(tmp_path / name)


def test_a_pointer_in_place_of_an_image_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(
        MidsightError,
        match=r"a\.jpg contains no PNG.*: it is a pointer of Git LFS .*; fetch the file with git lfs pull\.",
    ):
        decode_image(tmp_path / "a.jpg")


def tar(path, *members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            add_member(archive, name, data)
    return path


def question(n):
    return json.dumps({"question": f"What is {n}?", "image": "elsewhere/original.jpg"}).encode()


class TestTar:
    """Tar shards whose members are in any order."""

    def test_members_are_found_wherever_they_are(self, tmp_path):
        images = [(f"{n}.jpg", ENCODED[n]) for n in range(3)]
        dataset = read_good(tar(tmp_path / "a.tar", *images, *((f"{n}.json", question(n)) for n in (2, 0, 1))))
        assert [(s.sample_id, s.question) for s in dataset.samples] == [(f"{n}", f"What is {n}?") for n in range(3)]
        assert all(same_picture(sample.images[0], n) for n, sample in enumerate(dataset.samples))
        assert dataset.samples[0].extras == {"image": "elsewhere/original.jpg"}

    def test_a_key_that_comes_again_as_a_whole_is_another_row(self, tmp_path):
        members = [(name, data) for n in range(2) for name, data in (("k.jpg", ENCODED[n]), ("k.json", question(n)))]
        other = [("o.jpg", ENCODED[2]), ("o.json", question(2))]
        dataset = read_good(tar(tmp_path / "a.tar", *members[:2], *other, *members[2:]))
        assert [s.question for s in dataset.samples] == ["What is 0?", "What is 1?", "What is 2?"]
        assert all(same_picture(sample.images[0], n) for n, sample in enumerate(dataset.samples))

    @pytest.mark.parametrize("order", ["jj dd", "jdj o", "j o j o d"])
    def test_it_is_never_guessed_which_belong_together(self, tmp_path, order):
        made = {"j": ("k.jpg", ENCODED[0]), "d": ("k.json", question(0)), "o": ("o.jpg", ENCODED[1])}
        members = [made[letter] for letter in order if letter != " "]
        dataset = read_table(tar(tmp_path / "a.tar", *members, ("p.jpg", ENCODED[2]), ("p.json", question(2))))
        assert [s.question for s in dataset.samples] == ["What is 2?"]
        reasons = " ".join(failure.reason for failure in dataset.failures)
        assert "'k.jpg' comes several times; give every sample a name of its own." in reasons

    def test_several_images_of_a_row_are_said(self, tmp_path):
        dataset = read_good(
            tar(tmp_path / "a.tar", ("0.jpg", ENCODED[0]), ("0.mask.png", ENCODED[1]), ("0.json", question(0)))
        )
        assert "The images of each row are its members 'jpg', 'mask.png', in this order." in dataset.notes


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>\nWhat?"},
         {"role": "assistant", "content": "A dog."}, {"role": "user", "content": "Why?"}]  # fmt: skip
COUNTED = {
    "In 1 of the conversations, the system turn is left out; the option system gives all prompts the same one.",
    "In 1 of the conversations, the user asks more than once; only the first question is asked.",
}


def conversations(tmp_path, form):
    """One conversation with an image, as a file of the form."""
    (tmp_path / "a.png").write_bytes(ENCODED[0])
    row = {"image": "a.png", "messages": TURNS}
    if form == "a.parquet":
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / form)
    elif form == "lists.parquet":  # as `datasets` stores a Sequence of objects
        lists = {"role": [turn["role"] for turn in TURNS], "content": [turn["content"] for turn in TURNS]}
        pq.write_table(pa.Table.from_pylist([{**row, "messages": lists}]), tmp_path / form)
    elif form == "a.tar":
        tar(tmp_path / form, ("0.png", ENCODED[0]), ("0.json", json.dumps({"messages": TURNS}).encode()))
    elif form == "a.csv":
        (tmp_path / form).write_text('image,messages\na.png,"' + str(TURNS).replace('"', '""') + '"\n')
    else:
        (tmp_path / form).write_text(json.dumps(row))
    return tmp_path / form


@pytest.mark.parametrize("form", ["a.jsonl", "a.parquet", "lists.parquet", "a.tar", "a.csv"])
def test_turns_that_are_not_asked_are_counted_in_every_form(tmp_path, form):
    dataset = read_good(conversations(tmp_path, form))
    assert prompts(dataset) == ["#What?"]
    assert dataset.samples[0].reference_answers == ("A dog.",)
    assert {*dataset.notes} >= COUNTED


PNG = text(ENCODED[0])
OPENAI = {"model": "m", "messages": [{"role": "user", "content": [
    {"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {"url": "a.png"}}]}]}  # fmt: skip
RESPONSES = {"model": "m", "instructions": "Be brief.", "input": [{"role": "user", "content": [
    {"type": "input_text", "text": "Look: "},
    {"type": "input_image", "image_url": "a.png"}]}]}  # fmt: skip
CLAUDE = {"model": "m", "messages": [{"role": "user", "content": [
    {"type": "text", "text": "Look: "},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]}]}  # fmt: skip


@pytest.mark.parametrize(("column", "body"), [("body", OPENAI), ("body", RESPONSES), ("params", CLAUDE)])
def test_requests_of_batch_files(tmp_path, column, body):
    (tmp_path / "a.png").write_bytes(ENCODED[0])
    rows = [{"custom_id": f"r{n}", "method": "POST", column: body} for n in range(2)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = read_good(tmp_path / "a.jsonl")
    assert [sample.sample_id for sample in dataset.samples] == ["r0", "r1"]
    assert prompts(dataset) == ["Look: #"] * 2
    assert same_picture(dataset.samples[0].images[0], 0)
    assert any("system turn" in note for note in dataset.notes) == ("instructions" in body)


def test_the_cauldron(tmp_path):
    images = pa.array([[{"bytes": ENCODED[1], "path": None}]], pa.list_(STRUCT))
    exchanges = (("What?", "A dog."), ("Why?", "So."))
    texts = [[{"user": asked, "assistant": said, "source": "s"} for asked, said in exchanges]]
    pq.write_table(pa.table({"images": images, "texts": texts}), tmp_path / "a.parquet")
    dataset = read_good(tmp_path / "a.parquet")
    assert (prompts(dataset), dataset.samples[0].reference_answers) == (["#What?"], ("A dog.",))
    assert same_picture(dataset.samples[0].images[0], 1)


def test_qwens_conversations_name_images_in_the_text_or_in_parts_without_a_type(tmp_path):
    (tmp_path / "a.png").write_bytes(ENCODED[0])
    in_text = {"conversations": [{"from": "user", "value": "Picture 1: <img>a.png</img>\nWhat?"}]}
    in_parts = {"conversations": [{"role": "user", "content": [{"image": "a.png"}, {"text": "What?"}]}]}
    (tmp_path / "a b.png").write_bytes(ENCODED[0])
    spaced = {"conversations": [{"from": "user", "value": "Picture 1: <img>a b.png</img>\nWhat?"}]}
    (tmp_path / "a.json").write_text(json.dumps([in_text, in_parts, spaced]))
    dataset = read_good(tmp_path / "a.json")
    assert prompts(dataset) == ["Picture 1: #\nWhat?", "#What?", "Picture 1: #\nWhat?"]
    assert all(same_picture(sample.images[0], 0) for sample in dataset.samples)
    assert dataset.notes == ()


def test_minicpms_images_by_placeholder(tmp_path):
    turns = [{"role": "user", "content": "Is <image_01> like <image_00>?"}]
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(ENCODED[n])
    row = {"image": {"<image_01>": "1.png", "<image_00>": "0.png"}, "conversations": turns}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    dataset = read_good(tmp_path / "a.json")
    assert prompts(dataset) == ["Is # like #?"]
    assert all(same_picture(image, n) for n, image in enumerate(dataset.samples[0].images))


class TestJson:
    """Lists inside two objects."""

    @pytest.mark.parametrize(
        "whole",
        [
            {"info": {"n": 1}, "data": {"info": [{"x": 1}], "questions": ROWS}},
            {"result": {"rows": ROWS, "n": 3}},
            {"dataset": {"test": ROWS}},
            {"data": {row["id"]: {k: v for k, v in row.items() if k != "id"} for row in ROWS}, "version": 1},
        ],
    )
    def test_they_are_the_table(self, tmp_path, whole):
        expected = content(read_good(write(tmp_path, "lines.json", ROWS)))
        (tmp_path / "a.json").write_text(json.dumps(whole, indent=1))
        assert content(read_good(tmp_path / "a.json")) == expected

    def test_several_are_splits(self, tmp_path):
        whole = {"train": {"data": ROWS[:1], "n": 1}, "test": {"data": ROWS[1:], "n": 2}}
        (tmp_path / "a.json").write_text(json.dumps(whole))
        with pytest.raises(MidsightError, match="has several splits; choose one of 'train', 'test' with split"):
            read_table(tmp_path / "a.json")
        assert read_good(tmp_path / "a.json", split="test").rows == 2

    def test_a_list_inside_rows_by_id_is_not_the_table(self, tmp_path):
        row = {"question": "?", "image": "a.png", "data": [{"x": 1}]}
        (tmp_path / "a.json").write_text(json.dumps({"r1": row, "r2": row}))
        assert [sample.sample_id for sample in read_good(tmp_path / "a.json").samples] == ["r1", "r2"]

    def test_one_row_with_lists_is_a_row(self, tmp_path):
        turns = [{"from": "human", "value": "<image><image>Same?"}]
        row = {"image": ["a.png", "b.png"], "width": [1, 2], "conversations": turns}
        (tmp_path / "a.jsonl").write_text(json.dumps(row))
        assert prompts(read_good(tmp_path / "a.jsonl")) == ["##Same?"]

    @pytest.mark.parametrize("suffix", [".json", ".jsonl"])
    def test_a_file_may_be_one_object_over_several_lines(self, tmp_path, suffix):
        for n, row in enumerate(ROWS):
            (tmp_path / f"{n}{suffix}").write_text(json.dumps({**row, "image": text(ENCODED[n])}, indent=2) + "\n\n")
        dataset = read_good(tmp_path)
        assert [sample.sample_id for sample in dataset.samples] == ["n0", "n1", "n2"]
        assert all(same_picture(sample.images[0], n) for n, sample in enumerate(dataset.samples))
        (tmp_path / f"1{suffix}").write_text('{"image": "a.png",\n"question": What?}')
        (tmp_path / f"3{suffix}").write_text("")
        damaged = read_table(tmp_path)
        assert [sample.sample_id for sample in damaged.samples] == ["n0", "n2"]
        assert "cannot be read as JSON" in damaged.failures[0].reason
        for n in range(3):
            (tmp_path / f"{n}{suffix}").unlink()
        with pytest.raises(MidsightError, match=r"has no row with values, .*; it is empty"):
            read_table(tmp_path)

    def test_lists_by_image_are_refused_with_the_remedy(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps({"a.PNG": [{"question": "?"}], "b.png": [{"question": "?"}]}))
        with pytest.raises(MidsightError, match="for each image; write one row for each, with its image in it"):
            read_table(tmp_path / "a.json")

    def test_pandas_split_form_is_refused_with_the_remedy(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps({"columns": ["image"], "index": [0], "data": [["a.png"]]}))
        with pytest.raises(MidsightError, match="holds columns, not rows; with pandas, write to_json"):
            read_table(tmp_path / "a.json")


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_first_line_may_name_the_separator(tmp_path, line, end):
    rows = [line, "image;question", "a.png;Is it, say, red?", "b.png;;"]
    (tmp_path / "a.csv").write_bytes(("\ufeff" + end.join(rows) + end).encode())
    dataset = read_table(tmp_path / "a.csv")
    assert [(s.image, s.question) for s in dataset.samples] == [("a.png", "Is it, say, red?")]
    assert dataset.failures[0].reason.endswith("line 4: it has 3 cells, the header 2.")
    assert dataset.notes == (f"The cells of {tmp_path / 'a.csv'} are separated by ';'.",)


@pytest.mark.parametrize("name", ["a.arrow", "a.feather"])
def test_arrow_files_are_tables(tmp_path, name):
    table = pa.table({"image": as_struct(ENCODED[:3]), "question": ["a?", "b?", "c?"]})
    if name == "a.feather":
        feather.write_feather(table, tmp_path / name, compression="lz4")
    else:
        (write_arrow(tmp_path / "saved", as_struct(ENCODED[:3])) / "data-00000-of-00001.arrow").rename(tmp_path / name)
    dataset = read_good(tmp_path / name)
    assert len(dataset.samples) == 3
    assert all(same_picture(dataset.samples[n].images[0], n) for n in (2, 0, 1))


class TestCells:
    """Cells as pandas, NumPy and `datasets` write them."""

    @pytest.mark.parametrize(
        ("cell", "names"),
        [
            ("['a.png' 'b.png']", ["a.png", "b.png"]),
            ('["a.png", "b.png"]', ["a.png", "b.png"]),
            ("{'bytes': None, 'path': 'a.png'}", ["a.png"]),
            ('{"url": "a.png"}', ["a.png"]),
            ([{"image_path": "a.png"}, {"uri": "b.png"}], ["a.png", "b.png"]),
        ],
    )
    def test_images(self, tmp_path, cell, names):
        (tmp_path / "a.jsonl").write_text(json.dumps({"image": cell, "question": "?"}))
        (sample,) = read_good(tmp_path / "a.jsonl").samples
        assert sample.images == tuple(tmp_path.resolve() / name for name in names)

    def test_a_path_that_only_begins_as_from_the_root_gets_a_hint(self, tmp_path):
        (tmp_path / "a.png").write_bytes(ENCODED[0])
        (tmp_path / "a.csv").write_text("image,question\n/a.png,?\n/b.png,?\n")
        first, second = read_table(tmp_path / "a.csv").failures
        assert first.reason.endswith(", but is in it without the first /; leave it out.")
        assert "name the folder that holds all images" in second.reason

    def test_an_image_object_that_was_printed_is_named(self, tmp_path):
        (tmp_path / "a.csv").write_text("image,question\n<PIL.PngImagePlugin.PngImageFile image mode=RGB>,?\n")
        (failure,) = read_table(tmp_path / "a.csv").failures
        assert "which Python prints for an image object; write the image's path or its bytes" in failure.reason

    @pytest.mark.parametrize(
        ("value", "answers"),
        [
            ({"answer": ["red", "blue"], "answer_id": [1, 2]}, ("red", "blue")),
            ({"text": ["red"], "answer_start": [3]}, ("red",)),
            ("['red', 'it\\'s']", ("red", "it's")),
            ("['red' 'blue']", ("red", "blue")),
            ("[0, 2]", ("[0, 2]",)),
            (float("nan"), ()),
            ([1.0, float("nan"), None, "x"], ("1", "x")),
        ],
    )
    def test_answers(self, value, answers):
        assert reference_answers(value) == answers

    @pytest.mark.parametrize(
        "cells",
        [
            {"choice_b": "y", "choice_a": "x", "choice_c": None},
            {"option1": "x", "option2": "y"},
            {"choices": "['x' 'y']"},
            {"choices": '["x", null, "y"]', "A": "x", "B": "y"},
            {"A": "x", "B": "y", "C": "nan", "D": ""},
            {"options": {"label": ["A", "B"], "text": ["x", "y"]}},
            {"options": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]},
        ],
    )
    def test_choices(self, cells):
        assert [*choices_of(cells)] == [("A", "x"), ("B", "y")]


class TestQuestions:
    """What other tools write around a question."""

    @pytest.mark.parametrize(
        ("question", "prompt"),
        [
            ("USER: <image>\nWhat is it? ASSISTANT:", "#What is it?"),
            ("<image>\nUSER: What is it?\nASSISTANT: ", "#What is it?"),
            ("USER: What is it?", "#What is it?"),
            ("### Human: <image> What is it?\n### Assistant:", "#What is it?"),
            ("<image>User: What is it? GPT:<answer>", "#What is it?"),
            ("What is it? ASSISTANT:", "#What is it?"),
            ("User: what does bob write?", "#User: what does bob write?"),
            ("User: who is it? ChatGPT:", "#User: who is it? ChatGPT:"),
        ],
    )
    def test_turns_of_another_tool_are_left_out(self, tmp_path, question, prompt):
        (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "question": question}))
        dataset = read_good(tmp_path / "a.jsonl")
        assert prompts(dataset) == [prompt]
        said = "In 1 of the questions, USER: before the text or ASSISTANT: after it is left out"
        assert any(note.startswith(said) for note in dataset.notes) == (question[:5] != "User:")
        pairs = make_samples([("a.png", question)])
        notes = tuple(note.replace(f"{tmp_path / 'a.jsonl'}, line 1", "item 0") for note in dataset.notes)
        assert (prompts(pairs), pairs.notes) == ([prompt], notes)

    @pytest.mark.parametrize(
        "question",
        [
            "A chat. USER: What? ASSISTANT:",
            "USER: What? ASSISTANT: A dog. USER: Why?",
            "What? ASSISTANT: A dog. USER: Why?",
            "A chat. USER: What? ASSISTANT: Say",
            "A chat. HUMAN: What? GPT: Say",
            "Human: What?\nAssistant: A dog.\nHuman: Why?\nAssistant:",
            "A chat. Human: What? Assistant:",
        ],
    )
    def test_several_turns_fail(self, tmp_path, question):
        (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "question": question}))
        (failure,) = read_table(tmp_path / "a.jsonl").failures
        assert "the question holds several turns or a whole prompt" in failure.reason
        (failure,) = make_samples([("a.png", question)]).failures
        assert "give the first question alone" in failure.reason

    @pytest.mark.parametrize(
        ("question", "role"),
        [
            ("A chat. USER: What is it?", "USER:"),
            ("What is it? ASSISTANT: A dog", "ASSISTANT:"),
            ("Be brief.\nHuman: What is it?", "Human:"),
            ("Below is a task.\n\n### Instruction:\nWhat is it?\n\n### Response:", "### Instruction:"),
        ],
    )
    def test_a_lone_role_stays_as_words_and_its_first_row_is_named(self, tmp_path, question, role):
        rows = [{"image": "a.png", "question": asked} for asked in ("Which user: bob or alice?", question, question)]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        dataset = read_good(tmp_path / "a.jsonl")
        assert prompts(dataset)[1] == f"#{question}"
        assert dataset.notes == (
            f"In 2 of the questions, a text like {role} stays in the prompt as words, first in "
            f"{tmp_path / 'a.jsonl'}, line 2; if it marks a turn, give the question alone.",
        )

    def test_a_tag_between_words_is_said(self):
        dataset = make_samples(
            [("a.png", "Is <img> red?"), ("a.png", "Is the <img> tag red?"), ("a.png", "<img> Red?")]
        )
        assert dataset.notes[0] == "In 1 of the questions, <img> between words is taken as an image."
        assert prompts(dataset) == ["Is # red?", "#Is the <img> tag red?", "#Red?"]


class TestNearlyBlack:
    """Images of 16-bit values that come out nearly black."""

    def dark(self, deep):
        return Image.fromarray(np.full((8, 8), deep, np.uint16))

    def test_every_row_in_memory_is_named_up_to_a_number(self):
        rows = [{"image": self.dark(n), "question": "?"} for n in range(MOST_NOTES + 3)]
        notes = read_memory(rows).notes
        assert len(notes) == MOST_NOTES + 1
        assert notes[1].startswith("Row 2: The image in memory stores 16-bit grey values")
        assert notes[-1] == "3 more images come out nearly black."

    def test_grey_with_transparency_and_colour_count_too(self, tmp_path):
        def png(colour_type, values):
            def chunk(kind, data):
                body = kind + data
                return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

            header = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
            row = b"\0" + np.array(values * 2, ">u2").tobytes()
            return (
                b"\x89PNG\r\n\x1a\n"
                + chunk(b"IHDR", header)
                + chunk(b"IDAT", zlib.compress(row * 2))
                + chunk(b"IEND", b"")
            )

        for colour_type, dark, light in ((2, [4000] * 3, [4000, 4000, 60000]), (4, [4000, 65535], [60000, 65535])):
            for values, black in ((dark, True), (light, False)):
                notes = []
                decode_image(png(colour_type, values), note=notes.append)
                assert len(notes) == black
                assert all("stores 16-bit colour values that are all below 8,192" in note for note in notes)


class TestHeic:
    """HEIC, which a package of its own reads."""

    HEADER = b"\0\0\0\x18ftypheic" + bytes(100)

    def test_the_package_reads_it(self, tmp_path):
        heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
        shown = picture((40, 30), 1)
        heif.from_pillow(shown).save(tmp_path / "a.heic", quality=-1, chroma=444)
        for name in ("a.heic", "a.HEIF"):
            (tmp_path / name).write_bytes((tmp_path / "a.heic").read_bytes())
        dataset = read_good(tmp_path, question="?")
        assert [sample.image for sample in dataset.samples] == ["a.HEIF", "a.heic"]
        for sample in dataset.samples:
            image = decode_image(sample.images[0])
            assert (image.mode, image.size) == ("RGB", (40, 30))
            assert np.abs(np.asarray(image, int) - np.asarray(shown, int)).max() <= 4
        rows = [{"image": base64.b64encode((tmp_path / "a.heic").read_bytes()).decode(), "question": "?"}]
        (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
        assert decode_image(read_good(tmp_path / "a.jsonl").samples[0].images[0]).size == (40, 30)

    def test_damaged_and_large_ones_fail(self, tmp_path):
        heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
        heif.from_pillow(picture((40, 30), 1)).save(tmp_path / "a.heic")
        data = (tmp_path / "a.heic").read_bytes()
        with pytest.raises(MidsightError, match="cannot be decoded"):
            decode_image(data[: len(data) // 2])
        with pytest.raises(MidsightError, match="is 40 x 30 pixels; at most 100 are decoded"):
            decode_image(data, max_pixels=100)

    def test_any_reader_under_the_packages_name_is_used(self, monkeypatch):
        """A stand-in, so that the way to the package is tested where it is absent."""
        plugin = ModuleType("pillow_heif.as_plugin")
        plugin.__dict__["HeifImageFile"] = lambda _: picture((5, 4), 0)
        monkeypatch.setitem(sys.modules, "pillow_heif", ModuleType("pillow_heif"))
        monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", plugin)
        assert decode_image(self.HEADER).size == (5, 4)


@pytest.mark.parametrize("brand", [b"avif", b"mif1", b"miaf"])
def test_avif_is_recognised_by_any_of_its_brands(brand):
    data = encoded(picture((40, 30), 1), "AVIF")
    assert data[4:8] == b"ftyp"
    assert b"avif" in data[16:40]
    assert decode_image(data[:8] + brand + data[12:]).size == (40, 30)


class TestStreams:
    """What is said of streams once their rows are read."""

    @pytest.fixture
    def datasets(self):
        return pytest.importorskip("datasets", reason="the extra `datasets` is not installed")

    def stream(self, datasets, rows, **options):
        source = datasets.Dataset.from_list(rows).to_iterable_dataset()
        return stream_rows(source, "hf://a/b", "digest", DatasetOptions(**options))

    def test_turns_that_are_not_asked_are_counted(self, datasets, tmp_path):
        stream = self.stream(datasets, [{"image": "a.png", "messages": TURNS}], images=tmp_path)
        assert stream.notes_of_rows() == []
        assert len(list(stream.rows())) == 1
        assert {*stream.notes_of_rows()} == COUNTED

    def test_guessed_ids_that_repeat_become_an_extra(self, datasets, tmp_path):
        rows = [{"id": given, "Image": "a.png", "question": f"{n}?"} for n, given in enumerate("xyx")]
        stream = self.stream(datasets, rows, images=tmp_path)
        for _ in range(2):  # a resumed run has the same ids
            first, second, third = stream.rows()
            assert (first.sample_id, second.sample_id) == ("x", "y")
            assert third.sample_id.startswith("2-")
            assert [row.extras["id"] for row in stream.rows() if isinstance(row, Sample)] == ["x", "y", "x"]
            assert stream.notes_of_rows() == [
                "In 1 of the rows of hf://a/b, the id in the column 'id' came before; such rows have ids of their own, "
                "and the column is an extra."
            ]
        assert stream.extras == {"id": "string"}
        assert stream.notes == ("The column 'Image' is taken as the image.",)
        assert self.stream(datasets, rows, images=tmp_path, id_column="id").extras == {}

"""Rows with very many lists, objects and texts: refused early, without reading them, and nothing else is."""

from __future__ import annotations

import base64
import gzip
import json
import tarfile
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midsight.errors import MidsightError
from midsight.samples import json_rows, json_shape, nesting
from midsight.samples.in_memory import memory_table
from midsight.samples.options import DatasetOptions
from midsight.samples.tables import read_memory, read_table
from support.forms import ROWS, add_member, lines, write
from support.made_tables import ENCODED

MANY = 5000
NESTED = {
    "deep": "[" * MANY + "]" * MANY,
    "deep objects": '{"a":' * MANY + "1" + "}" * MANY,
    "never closed": "[" * 2 * MANY,
    "chains": f"[{','.join(['[' * 40 + ']' * 40] * (MANY // 40))}]",
    "empty": f"[{','.join(['[]'] * MANY)}]",
    "pairs": json.dumps([[1, 2]] * MANY),
    "objects": json.dumps([{"a": {"b": [1]}}] * (MANY // 3)),
    "an object": json.dumps({f"k{n}": n for n in range(MANY)}),
    "texts": json.dumps(["a, [b"] * MANY),
    "in an object": json.dumps({"a": {"b": [[[n]] for n in range(MANY)]}}),
}
"""More lists, objects and texts than a row may hold, in every shape."""
TOO_MANY = r"it holds more than 1,000 lists, objects and texts"


class Work:
    """What was done to read JSON."""

    def __init__(self) -> None:
        self.decoded_bytes = 0
        self.tokens = 0


@pytest.fixture(params=[4000, 20_000_000], ids=["large", "small"])
def work(monkeypatch, request) -> Work:
    """Counts, where a row may hold 1,000 lists, objects and texts, and a file is large or not."""
    work, decode, token = Work(), json_rows._decode, json_rows.TOKEN

    class CountingPattern:
        def search(self, text, position):
            work.tokens += 1
            return token.search(text, position)

        match = token.match

    def counting_decode(text):
        work.decoded_bytes += len(text)
        return decode(text)

    monkeypatch.setattr(nesting, "MAX_NESTED", 1000)
    monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", request.param)
    monkeypatch.setattr(json_rows, "_decode", counting_decode)
    for module in (json_rows, json_shape):
        monkeypatch.setattr(module, "_CHUNK_BYTES", 2000)
        monkeypatch.setattr(module, "TOKEN", CountingPattern())
    return work


def row_with(nested: str, **cells: str) -> str:
    """A row whose last value is the nested one."""
    return f'{json.dumps({"image": "a.png", **cells})[:-1]}, "x": {nested}}}'


@pytest.mark.parametrize("nested", NESTED.values(), ids=NESTED.keys())
@pytest.mark.parametrize("form", ["a.jsonl", "a.jsonl.gz", "a.json", "array.json", "list.json", "by_id.json"])
@pytest.mark.parametrize("cells", [{}, {"question": "What?"}], ids=["no question", "question"])
def test_a_row_alone_is_refused_unread(tmp_path, work, form, nested, cells):
    row = row_with(nested, **cells)
    text = {"array.json": f"[{row}]", "list.json": f'{{"data": [{row}]}}', "by_id.json": f'{{"a": {row}}}'}
    data = text.get(form, row).encode()
    (tmp_path / form).write_bytes(gzip.compress(data) if form.endswith(".gz") else data)
    with pytest.raises(MidsightError, match=rf"has no row with values, .*: {TOO_MANY}; (leave out|the rest)"):
        read_table(tmp_path / form)
    assert work.decoded_bytes < 10_000
    assert work.tokens < 4000


@pytest.mark.parametrize("nested", NESTED.values(), ids=NESTED.keys())
def test_a_value_before_the_names_of_a_row_too(tmp_path, work, nested):
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(f'{{"x": {nested}, "image": "a.png", "question": "What?"}}')
        with pytest.raises(MidsightError, match=rf"{TOO_MANY}|is not JSON with rows|no list of rows"):
            read_table(tmp_path / name)
    assert work.decoded_bytes < 20_000
    assert work.tokens < 5000


@pytest.mark.parametrize("nested", ["pairs", "texts", "an object", "deep"])
def test_other_rows_are_read(tmp_path, work, nested):
    good = [json.dumps({"image": "a.png", "question": f"{n}?"}) for n in range(2)]
    rows = [good[0], row_with(NESTED[nested], question="What?"), good[1]]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "a.json").write_text(f"[{','.join(rows)}]")
    for name, unit in {"a.jsonl": "line", "a.json": "element"}.items():
        read = read_table(tmp_path / name)
        is_last = nested == "deep" and unit == "element"  # where it ends is not looked for
        assert [sample.question for sample in read.samples] == (["0?"] if is_last else ["0?", "1?"])
        (failure,) = read.failures
        assert f"{unit} 2: it holds more than 1,000 lists" in failure.reason
        assert ("the rest of the file is not read" in failure.reason) is is_last


def test_what_people_have_in_rows_is_read(tmp_path, work):
    image = tmp_path / "0.png"
    image.write_bytes(ENCODED[0])
    rows = [
        {"image": list(ENCODED[0]) * 50, "question": "A list of bytes?"},
        {"image": base64.b64encode(ENCODED[0] * 500).decode(), "question": "Base64?"},
        {"image": "0.png", "question": "[{" * 4000, "boxes": [[1, 2, 3, 4]] * 900, "text": 'a "quoted" text \\' * 2000},
    ]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        read = read_table(tmp_path / name)
        assert [sample.question for sample in read.samples] == [row["question"] for row in rows]


def test_a_first_row_that_begins_with_a_long_list_of_bytes_is_read(tmp_path, monkeypatch):
    for place in ("json_shape.BYTES_WITHOUT_ROWS", "json_shape._CHUNK_BYTES", "sources.LARGE_BYTES"):
        monkeypatch.setattr(f"midsight.samples.{place}", 100)
    (tmp_path / "a.jsonl").write_text(lines({"image": list(ENCODED[0]), "question": f"{n}?"} for n in range(2)))
    assert [sample.question for sample in read_table(tmp_path / "a.jsonl").samples] == ["0?", "1?"]
    (tmp_path / "a.json").write_text(json.dumps({"image": ["a.png"] * 100, "question": ["What?"] * 100}))
    with pytest.raises(MidsightError, match="holds columns, not rows"):
        read_table(tmp_path / "a.json")


def test_more_values_than_an_image_has_bytes_fail(tmp_path, work, monkeypatch):
    monkeypatch.setattr(nesting, "MAX_VALUES", 100)
    (tmp_path / "a.jsonl").write_text(lines([*ROWS, {"image": [1] * 200, "question": "What?"}]))
    (failure,) = read_table(tmp_path / "a.jsonl").failures
    assert "line 4: it holds more than 100 values; leave out the column that holds them." in failure.reason


def test_a_wrong_table_of_nested_rows_is_refused_by_the_first_ones(tmp_path, work):
    rows = [{"image": "a.png", "x": [[[n], [n]]] * 100} for n in range(200)]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        with pytest.raises(MidsightError, match="no column 'question'; it has 'image', 'x'"):
            read_table(tmp_path / name)
    assert work.decoded_bytes < 30_000 < (tmp_path / "a.json").stat().st_size / 5
    assert work.tokens < 5000


def test_small_files_of_many_texts_are_read_to_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(nesting, "MAX_NESTED", 1000)
    for name in ("BYTES_LOOKED_AT", "_CHUNK_BYTES"):
        monkeypatch.setattr(json_shape, name, 1000)
    images = [{"file_name": f"{n}.png", "license": "none", "date": "2014"} for n in range(200)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "questions": ROWS}))
    assert [sample.question for sample in read_table(tmp_path / "a.json").samples] == [row["question"] for row in ROWS]
    talk = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A lamp."}]}
    mix = [*[{"id": "text", **talk}] * 100, {"id": "0", "image": "0.png", **talk}]
    for name, text in {"mix.json": json.dumps(mix), "mix.jsonl": lines(mix)}.items():
        (tmp_path / name).write_text(text)
        read = read_table(tmp_path / name)
        assert ([sample.image for sample in read.samples], len(read.failures)) == (["0.png"], 100)


def test_a_wrong_tar_of_long_texts_is_refused_by_the_first_ones(tmp_path, work, monkeypatch):
    monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", 4000)
    monkeypatch.setattr("midsight.samples.webdataset.TEXT_BYTES_LOOKED_AT", 10_000)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(100):
            add_member(archive, f"{number}.jpg", ENCODED[0])
            add_member(archive, f"{number}.json", json.dumps({"x": [[[number]]] * 200}).encode())
    with pytest.raises(MidsightError, match="no column 'question'; it has '__key__', 'x', 'jpg'"):
        read_table(tmp_path / "a.tar")
    assert work.decoded_bytes < 20_000 < (tmp_path / "a.tar").stat().st_size / 10


@pytest.mark.parametrize("nested", [name for name in NESTED if name != "never closed"])
@pytest.mark.parametrize("size", [50, 700, 1_000_000])
def test_rows_behind_nested_values_are_found_where_they_are(tmp_path, monkeypatch, nested, size):
    monkeypatch.setattr(json_shape, "_CHUNK_BYTES", size)
    begin = f'{{"a": {NESTED[nested]}, "b": {{"c": {NESTED[nested]}, "d": 1}}, "e": [{NESTED[nested]}], "data": '
    (tmp_path / "a.json").write_text(f"{begin}{json.dumps(ROWS)}}}")
    assert json_shape.json_shape(tmp_path / "a.json") == json_rows.JsonShape("array", len(begin), inside=True)


@pytest.mark.parametrize("form", ["a.jsonl", "a.csv", "a.parquet", "a.json"])
def test_ids_that_repeat_in_the_first_rows_are_refused_by_them(tmp_path, monkeypatch, form):
    monkeypatch.setattr("midsight.samples.sources.LARGE_BYTES", 100)
    rows = [{"name": f"n{n // 2 if n else 0}", **row} for n, row in enumerate(ROWS * 5)]
    path = write(tmp_path, form, rows)
    read = []
    monkeypatch.setattr("midsight.samples.tables._read", lambda *given: read.append(given))
    with pytest.raises(
        MidsightError, match=r"has the id 'n0' twice, in \w+ \d and \w+ \d; make ids unique, choose others"
    ):
        read_table(path, DatasetOptions(id_column="name"))
    assert read == []
    read_table(path, DatasetOptions(id_column="name"), limit=1)
    assert len(read) == 1


SCALAR = st.integers() | st.booleans() | st.none() | st.text('ab"\\[]{},:\n', max_size=8)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\{]', max_size=3), inner, max_size=4),
    max_leaves=30,
)


def depth_of(value) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(depth_of, inside), default=0)


def count_of(value) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + count_of(item) for item in value.values())
    return 1 + sum(map(count_of, value)) if isinstance(value, list) else int(isinstance(value, str))


@settings(deadline=None, max_examples=100)
@given(VALUE, st.integers(1, 20))
def test_depths_counts_and_ends_are_those_of_the_decoded_value(value, cut):
    data = json.dumps({"v": value}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "_PIECE_BYTES", cut)
        patch.setattr(nesting, "MAX_DEPTH", depth_of(value) + 1)
        assert nesting.too_deep_reason(data)
        patch.setattr(nesting, "MAX_DEPTH", depth_of(value) + 2)
        assert not nesting.too_deep_reason(data)
        patch.setattr(nesting, "MAX_NESTED", 2 + count_of(value))
        assert not nesting.too_much_reason(data + b" " * 10_000)
        patch.setattr(nesting, "MAX_NESTED", 1 + count_of(value))
        assert nesting.too_much_reason(data + b" " * 10_000)
        assert nesting.skip_nested(data + b', "]"', 1, 1) == (len(data) - 1, 0)
        position, depth = 1, 1
        for end in [*range(2, len(data), cut), len(data)]:  # text that arrives in pieces
            position, depth = nesting.skip_nested(data[:end], position, depth)
        assert (position, depth) == (len(data) - 1, 0)


def test_nested_values_in_frames_fail_where_they_are_too_deep():
    deep = [1]
    for _ in range(5000):
        deep = [deep]
    boxes = [[1, 2]] * 1000
    frame = pd.DataFrame({"image": ["a.png"] * 2, "question": ["What?"] * 2, "x": [boxes, deep]})
    for data in (frame, frame.to_dict("records")):
        read = read_memory(data)
        assert [sample.extras for sample in read.samples] == [{"x": boxes}]
        assert ["more than 100 deep" in failure.reason for failure in read.failures] == [True]
    with pytest.raises(MidsightError, match="no column 'question'"):
        read_memory(frame[["image", "x"]])
    assert Counter(bool(row.problem) for row in memory_table(frame).rows(())) == {False: 1, True: 1}

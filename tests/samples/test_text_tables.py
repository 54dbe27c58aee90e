"""CSV, TSV and JSON arrays: rows are located and read again, and a broken row fails alone."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midsight.errors import MidsightError
from midsight.samples import json_rows, rows
from midsight.samples.delimited import delimited_rows, header, split_row
from midsight.samples.json_rows import JsonShape, json_cells
from midsight.samples.locations import TextLocation
from midsight.samples.tables import read_table

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ['"', '""', '",', "\t", "\n", "\r\n", 'a"b', '"a"', " x ", "x" * 300]
)


def written(table: list[list[str]], delimiter: str, line_end: str) -> bytes:
    """As csv.writer writes it, and pandas' to_csv, which uses it: quotes where they are needed, doubled inside.

    A carriage return alone is quoted since Python 3.13 only.
    """
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if any("\r" in cell for row in table for cell in row) else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting).writerows(table)
    return text.getvalue().encode()


@given(st.data(), st.sampled_from([",", "\t"]), st.sampled_from(["\n", "\r\n"]))
def test_csv_is_read_as_written_and_again_by_location(tmp_path_factory, data, delimiter, line_end):
    width = data.draw(st.integers(2, 4))
    table = data.draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=6))
    path = tmp_path_factory.mktemp("csv") / "a"
    content = written([[f"c{n}" for n in range(width)], *table], delimiter, line_end)
    path.write_bytes(content)
    columns = header(path, delimiter)
    found = list(delimited_rows(path, delimiter, columns))
    assert [list(row.cells.values()) for row in found] == table
    for row in found:
        assert isinstance(row.location, TextLocation)
        text = content[row.location.offset_bytes : row.location.offset_bytes + row.location.length_bytes]
        assert split_row(text, delimiter) == list(row.cells.values())
        assert content[: row.location.offset_bytes].count(b"\n") == row.number - 1


def test_a_table_that_pandas_wrote_is_read_as_written(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas writes the TSV files of VLMEvalKit; it is not installed")
    table = {"index": [1, 2], "image": ["a.png", "b.png"], "question": ['"Why\tnot?"\nSay', "It's 5\" wide, \r ok?"]}
    pandas.DataFrame(table).to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    assert [sample.question for sample in read_table(tmp_path / "a.tsv").samples] == table["question"]


def test_bare_quotes_inside_of_a_cell_are_text(tmp_path):
    (tmp_path / "a.tsv").write_text('image\tquestion\na.png\tIs it 5" wide or 6"?\na.png\tAnd "this"\n')
    samples = read_table(tmp_path / "a.tsv").samples
    assert [sample.question for sample in samples] == ['Is it 5" wide or 6"?', 'And "this"']


@pytest.mark.parametrize("broken", ['a.png,"open', 'a.png,"open\nand more', 'a.png,"x"y', 'a.png,"x\ny"z', '"a.png,"b'])
def test_a_lost_quote_costs_its_own_line_and_no_other(tmp_path, broken):
    good = "".join(f'a.png,"{n}, or?"\n' for n in range(3))
    (tmp_path / "a.csv").write_text(f"image,question\n{good}{broken}\n{good}")
    dataset = read_table(tmp_path / "a.csv")
    assert [sample.question for sample in dataset.samples] == ["0, or?", "1, or?", "2, or?"] * 2
    assert "line 5: it cannot be read as CSV: a quote is not closed" in dataset.failures[0].reason
    assert len(dataset.failures) == 1 + broken.count("\n")


def test_rows_that_are_too_long_fail_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    long = "x" * 3_000_000
    (tmp_path / "a.csv").write_text(f'image,question\na.png,b?\na.png,{long}\na.png,"c\n{long}"\na.png,d?\n')
    dataset = read_table(tmp_path / "a.csv")
    assert [(s.question, s.input_index) for s in dataset.samples] == [("b?", 0), ("d?", 4)]
    assert "line 3: it has more than 100 bytes" in dataset.failures[0].reason
    (tmp_path / "a.jsonl").write_text(
        f'{{"image": "a.png", "question": "b?"}}\n{{"image": "{long}"}}\n{{"image": "a.png", "question": "c?"}}\n'
    )
    dataset = read_table(tmp_path / "a.jsonl")
    assert [s.question for s in dataset.samples] == ["b?", "c?"]
    assert "line 2: it has more than 100 bytes" in dataset.failures[0].reason
    monkeypatch.setattr(json_rows, "_CHUNK_BYTES", 10)
    (tmp_path / "a.json").write_text(json.dumps([{"image": "a", "question": "b?"}, {"image": long}]))
    dataset = read_table(tmp_path / "a.json")
    assert [s.question for s in dataset.samples] == ["b?"]
    assert "element 2: it has more than 100 bytes; the rest of the file is not read." in dataset.failures[0].reason


def test_a_cell_of_megabytes_is_read_and_no_global_limit_is_changed(tmp_path):
    before = csv.field_size_limit()
    question = "What? " * 160_000
    (tmp_path / "a.csv").write_text(f'image,question\na.png,"{question}"\n')
    assert read_table(tmp_path / "a.csv").samples[0].question == question
    assert csv.field_size_limit() == before


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])) | st.just('[{"\\"]}'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.lists(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), VALUES), max_size=5)


@given(OBJECTS, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
def test_json_is_read_as_written_and_again_by_location(tmp_path_factory, objects, indent, ascii_only, chunk):
    path = tmp_path_factory.mktemp("json") / "a.json"
    content = json.dumps(objects, indent=indent, ensure_ascii=ascii_only).encode()
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_CHUNK_BYTES", chunk)
        found = list(json_rows.json_rows(path, JsonShape("array", content.index(b"["))))
    assert [row.cells for row in found] == objects
    assert [row.number for row in found] == list(range(1, len(objects) + 1))
    for row in found:
        assert isinstance(row.location, TextLocation)
        text = content[row.location.offset_bytes : row.location.offset_bytes + row.location.length_bytes]
        assert json_cells(text) == row.cells


@given(st.binary(max_size=60) | st.text('[]{},":\\ \nab1', max_size=60).map(str.encode), st.integers(1, 20))
def test_every_byte_of_a_json_file_is_in_a_row_or_reported(tmp_path_factory, content, chunk):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_CHUNK_BYTES", chunk)
        if not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            return
        found = list(json_rows.json_rows(path, JsonShape("array", content.index(b"["))))
    try:
        expected = json.loads(content)
    except (ValueError, RecursionError):
        expected = None
    if expected is not None and all(isinstance(item, dict) for item in expected):
        assert [row.cells for row in found] == expected
    elif not any(row.problem for row in found):
        without_commas = re.sub(rb",(?=\s*(,|\]\s*$))|(?<=\[),", b"", content.removeprefix(b"\xef\xbb\xbf"))
        assert len(without_commas) < len(content), "only commas without an element between them are ignored"


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("5", "element 2: it is not a JSON object"),
        ('{"image": "a.png" "question": "b"}', "element 2: it cannot be read as JSON"),
        ('{"image": [1}', "element 2: it cannot be read as JSON"),
        ('{"image": {"a": 1]}}', "element 2: it cannot be read as JSON"),
        ('{"image": "a.png", "question": "\\ud800"}', "element 2: it holds half of a surrogate pair"),
        ('{"image": "a.png", "question": "caf\xe9"}', "element 2: it is not encoded as UTF-8"),
    ],
)
def test_a_broken_element_fails_alone(tmp_path, middle, reason):
    good = b'{"image": "a.png", "question": "b?"}'
    (tmp_path / "a.json").write_bytes(b"[" + good + b",\n" + middle.encode("latin-1") + b",\n" + good + b"]\n")
    dataset = read_table(tmp_path / "a.json")
    assert [s.input_index for s in dataset.samples] == [0, 2]
    assert reason in dataset.failures[0].reason


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        ("", "element 2: the file ends before the array does"),
        (',{"image": "a.p', "element 2: the file ends before the array does"),
        ("] {}", "element 2: there is text after the array"),
        ("]]", "element 2: there is text after the array"),
    ],
)
def test_an_array_that_does_not_end_properly_is_reported(tmp_path, tail, reason):
    (tmp_path / "a.json").write_text('[{"image": "a.png", "question": "b?"}' + tail)
    dataset = read_table(tmp_path / "a.json")
    assert len(dataset.samples) == 1
    assert reason in dataset.failures[0].reason


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n  "])
def test_byte_order_marks_and_space_before_an_array_are_ignored(tmp_path, mark):
    (tmp_path / "a.json").write_bytes(mark + b'[{"image": "a.png", "question": "b?"}]')
    assert read_table(tmp_path / "a.json").rows == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image: a.png", r"is not JSON with rows; write \[\{...\}, ...\], or one object per line"),
        (b"", "no row with values, write one JSON object per line; it is empty"),
        (b"[]", "no row with values, write one array of JSON objects; it is empty"),
        (b"[1]", "element 1: it is not a JSON object"),
        ("[]".encode("utf-16"), "UTF-16; save it as UTF-8"),
    ],
)
def test_a_wrong_json_file_is_refused_as_a_whole(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MidsightError, match=message):
        read_table(tmp_path / "a.json")


def test_ids_with_slashes_and_line_ends_stay_as_they_are(tmp_path):
    ids = ["../../etc/passwd", "a\nb", "a\r\nb", "C:\\x", " x", "a\u2028b", "é" * 300]
    lines = [json.dumps({"id": one, "image": "a.png", "question": "b?"}) for one in ids]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [s.sample_id for s in read_table(tmp_path / "a.jsonl").samples] == ids
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "image", "question"], *([one, "a.png", "b?"] for one in ids)])
    assert [s.sample_id for s in read_table(tmp_path / "a.csv").samples] == ids

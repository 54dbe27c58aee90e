"""Options for opening a dataset: one value, recorded with the dataset, and named in errors by its fields."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

import midsight.samples
from midsight.errors import MidsightError, Option
from midsight.samples.open import open_dataset
from midsight.samples.options import NOT_RECORDED, DatasetKeywords, DatasetOptions
from midsight.samples.sample import Failure
from midsight.samples.streams import SampleStream
from midsight.samples.tables import Dataset, make_samples, read_table
from support.hub_rows import image_rows, iterable, stand_in
from support.made_tables import ENCODED

FIELDS = [field.name for field in fields(DatasetOptions)]
RECORDED = [name for name in FIELDS if name not in NOT_RECORDED]
OF_EXTRACT = {"limit", "out"}
"""Arguments of midsight.extract that errors of this room name."""
ROOM = Path(inspect.getfile(midsight.samples)).parent


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"image": "a.png", "q": "b?", "answers": "c", "key": 7}))
    return path


def as_flag(option: Option) -> str:
    return f"--{option.name.replace('_', '-')}"


def test_the_keywords_are_the_fields_of_the_options():
    assert get_type_hints(DatasetKeywords) == get_type_hints(DatasetOptions)
    assert list(get_type_hints(DatasetKeywords)) == FIELDS
    assert DatasetKeywords.__required_keys__ == frozenset()


def test_each_option_is_documented_in_order():
    explained = (DatasetOptions.__doc__ or "").partition("Args:\n")[2]
    assert re.findall(r"^        (\w+): \S", explained, re.MULTILINE) == FIELDS


def test_a_table_records_the_options_in_use(table, tmp_path):
    assert read_table(table, DatasetOptions(question_column="q")).options == {
        "images": None,
        "image_column": "image",
        "question_column": "q",
        "answer_column": "answers",
        "id_column": None,
        "question": None,
        "split": None,
        "allow_urls": False,
    }
    (tmp_path / "pictures").mkdir()
    chosen = DatasetOptions(images=tmp_path / "pictures", question_column="q", id_column="key", allow_urls=True)
    assert read_table(table, chosen).options == {
        "images": str((tmp_path / "pictures").resolve()),
        "image_column": "image",
        "question_column": "q",
        "answer_column": "answers",
        "id_column": "key",
        "question": None,
        "split": None,
        "allow_urls": True,
    }
    own = DatasetOptions(images=tmp_path, question_column="q")
    assert read_table(table, own).options["images"] is None, "it is the table's own folder"


def test_a_folder_of_images_and_pairs_record_all_options(tmp_path):
    (tmp_path / "a.png").write_bytes(ENCODED[0])
    asked = read_table(tmp_path, DatasetOptions(question="What?")).options
    assert list(asked) == RECORDED
    assert (asked["question"], asked["image_column"], asked["question_column"]) == ("What?", "image", "question")
    pairs = make_samples([("a.png", "b?")]).options
    assert pairs == {**dict.fromkeys(RECORDED), "allow_urls": False}
    assert list(pairs) == RECORDED


def test_a_stream_records_the_options_in_use(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    stand_in(datasets, iterable(datasets, image_rows([0, 1])), monkeypatch)
    stream = open_dataset("hf://owner/name", DatasetOptions(split="test", id_column="n", images=tmp_path))
    assert isinstance(stream, SampleStream)
    assert stream.options == {
        "images": str(tmp_path.resolve()),
        "image_column": "image",
        "question_column": "question",
        "answer_column": None,
        "id_column": "n",
        "question": None,
        "split": "test",
        "allow_urls": False,
    }
    assert list(stream.options) == RECORDED
    with pytest.raises(
        MidsightError,
        match=r"^hf://owner/name has questions of its own in the column 'question'; leave question out\.$",
    ):
        open_dataset("hf://owner/name", DatasetOptions(question="What?"))


def test_a_dataset_is_opened_from_a_path_or_from_pairs(table):
    options = DatasetOptions(question_column="q")
    for opened in (open_dataset(table, options), open_dataset(str(table), options)):
        assert isinstance(opened, Dataset)
        assert (opened.samples, opened.path) == (read_table(table, options).samples, table)
    pairs = [("a.png", "b?"), ("c.png", "")]
    opened = open_dataset(iter(pairs))
    assert isinstance(opened, Dataset)
    assert (opened.samples, opened.failures) == (make_samples(pairs).samples, make_samples(pairs).failures)


def test_an_error_names_its_argument_in_python_and_as_a_flag(table):
    with pytest.raises(MidsightError) as refusal:
        read_table(table)
    columns = "'image', 'q', 'answers', 'key'"
    assert str(refusal.value) == f"{table} has no column 'question'; it has {columns}: choose one with question_column."
    assert refusal.value.sentence(as_flag).endswith("choose one with --question-column.")
    with pytest.raises(MidsightError) as refusal:
        read_table(table, DatasetOptions(split="test"))
    assert str(refusal.value) == f"{table} has no splits; leave split='test' out."
    assert Option("split", "test") in refusal.value.args
    table.write_text(json.dumps({"image": "https://example.org/a.png", "question": "b?"}))
    (failure,) = read_table(table).failures
    assert isinstance(failure, Failure)
    assert failure.reason.endswith("is a URL; allow web addresses with the option allow_urls, or give a path.")


def options_in_source() -> Iterator[str]:
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Option":
                yield ast.unparse(node.args[0]).strip("'")


def test_errors_name_arguments_that_exist_and_no_flags():
    named = set(options_in_source())
    assert named >= {"images", "id_column", "question", "split", "allow_urls", "limit", "out"}
    assert named <= {*FIELDS, *OF_EXTRACT, "f'{role}_column", "name"}
    for path in ROOM.glob("*.py"):
        assert re.findall(r"--[a-z][\w-]*", path.read_text()) == [], path.name


def test_the_python_examples_of_the_documentation_use_arguments_that_exist():
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    calls = [node for example in examples for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)]
    assert len(calls) == 3
    for call in calls:
        assert ast.unparse(call.func) == "midsight.extract"
        assert {keyword.arg for keyword in call.keywords} <= {"model", "out", *FIELDS}

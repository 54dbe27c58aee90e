"""Datasets with images inside go through the whole job as files do, by Python and by the command."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.extraction import prepare
from midsight.samples.tables import read_table
from support.made_tables import ENCODED, as_struct, text, write_arrow, write_parquet, write_text

OPTIONS = {"layers": "0,-1", "max_new_tokens": 2}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The same six rows on three images: named, as bytes, saved by `datasets`, as base64."""
    folder = tmp_path_factory.mktemp("tables")
    order = [0, 1, 2, 0, 1, 2]
    for i in range(3):
        (folder / f"{i}.png").write_bytes(ENCODED[i])
    return {
        "files": write_text(folder / "files.jsonl", [f"{i}.png" for i in order]),
        "parquet": write_parquet(folder / "a.parquet", as_struct([ENCODED[i] for i in order])),
        "arrow": write_arrow(folder / "arrow", as_struct([ENCODED[i] for i in order])),
        "tsv": write_text(folder / "a.tsv", [text(ENCODED[i]) for i in order]),
    }


def test_images_in_tables_give_the_vectors_of_files_and_are_prepared_once(tables, model, tmp_path, monkeypatch):
    decoded = []

    def counted(source, **_):
        decoded.append(source)
        return original(source)

    original = prepare.decode_image
    monkeypatch.setattr(prepare, "decode_image", counted)
    runs = {}
    for kind, path in tables.items():
        decoded.clear()
        runs[kind] = midsight.extract(path, model=model, out=tmp_path / kind, **OPTIONS)
        assert len(decoded) == 3, f"{kind}: an image of two questions is prepared once"
    expected = runs.pop("files")
    for kind, run in runs.items():
        assert run.failures() == []
        assert run.table()["image_id"].to_pylist() == expected.table()["image_id"].to_pylist()
        assert all(reference.startswith("sha256:") for reference in run.table()["image"].to_pylist())
        for name in run.vector_columns:
            assert np.array_equal(run.matrix(name), expected.matrix(name)), (kind, name)


def test_equal_places_are_one_image(tables, model, monkeypatch):
    decoded = []
    original = prepare.decode_image
    monkeypatch.setattr(prepare, "decode_image", lambda source, **_: decoded.append(source) or original(source))
    first, *_, last = read_table(tables["parquet"], limit=3).samples
    again = replace(last, images=(copy.deepcopy(first.images[0]),))
    assert again.images[0] is not first.images[0]
    model.extract_many([first, again], answers=False)
    assert len(decoded) == 1


def call(*arguments):
    return CliRunner().invoke(
        app, ["extract", *map(str, arguments), "--device", "cpu", "--no-answers", "--layers", "0"]
    )


def test_the_command_takes_folders_splits_and_shapes(tables, checkpoint, tmp_path):
    images = tables["files"].parent
    asked = call(images, "--question", "What is it?", "--model", checkpoint, "--out", tmp_path / "a")
    assert asked.exit_code == 0, asked.output
    assert midsight.open_run(tmp_path / "a").table()["image"].to_pylist() == ["0.png", "1.png", "2.png"]
    both = tmp_path / "both"
    write_arrow(both / "test", as_struct(ENCODED[:1]))
    write_arrow(both / "train", as_struct(ENCODED))
    (both / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    split = call(both, "--split", "test", "--model", checkpoint, "--out", tmp_path / "b")
    assert split.exit_code == 0, split.output
    assert len(midsight.open_run(tmp_path / "b")) == 1
    pope = {"question_id": 3, "image": str(images / "0.png"), "text": "Is there a dog?", "label": "no"}
    (tmp_path / "pope.jsonl").write_text(json.dumps(pope))
    done = call(tmp_path / "pope.jsonl", "--images", images, "--model", checkpoint, "--out", tmp_path / "c")
    assert done.exit_code == 0, done.output
    run = midsight.open_run(tmp_path / "c")
    assert (run.sample_ids(), run.table()["reference_answers"].to_pylist()) == (["3"], [["no"]])


def test_a_run_goes_on_only_with_web_addresses_as_they_were(tables, checkpoint, tmp_path):
    more = (tables["files"], "--model", checkpoint, "--limit", 1, "--out")
    assert call(*more, tmp_path / "without").exit_code == 0
    assert call(*more, tmp_path / "with", "--allow-urls").exit_code == 0
    refused = call(*more, tmp_path / "without", "--allow-urls")
    assert refused.exit_code == 2
    assert "was started with no --allow-urls, and this call has --allow-urls" in refused.output
    assert call(*more, tmp_path / "with").exit_code == 2
    assert call(*more, tmp_path / "with", "--allow-urls").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["hf://name"], "write hf://owner/name[/config][@revision]"),
        (["FOLDER"], "for a folder of images give --question"),
        (["FOLDER", "--question", "?", "--split", "x"], "has no split 'x'; choose one of 'a' with --split"),
        (["FOLDER/a.parquet", "--split", "x"], "has no splits; leave --split x out"),
    ],
)
def test_wrong_calls_exit_with_2_and_one_sentence(tables, checkpoint, tmp_path, arguments, sentence):
    folder = tables["files"].parent
    (tmp_path / "empty").mkdir()
    where = tmp_path / "empty" if arguments == ["FOLDER"] else folder
    done = call(*[a.replace("FOLDER", str(where)) for a in arguments], "--model", checkpoint, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output

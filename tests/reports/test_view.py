"""The file for a browser of embeddings, read back by other tools; and how the browser is started."""

import io
import json
import os
import stat

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import MidsightError
from midsight.labels.label import label_run
from midsight.probes.study import StudyOptions, study
from midsight.probes.write import write_study
from midsight.reports.thumbnails import SIDE_PX, ImageOfRun, make_thumbnails
from midsight.reports.view import ViewOptions, flat_names, usual_column, write_view
from midsight.samples.tables import read_table
from midsight.store.findings import read_predictions
from support.made_up import make_dataset_spec, make_record, make_spec, write_run
from support.pictures import encoded, picture
from support.planted import QUERY, write_planted

PLANTED = QUERY.format(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Sixty images with four questions each, a label and a finding."""
    run = write_planted(tmp_path_factory.mktemp("view") / "run")
    label_run(run, "yes_no")
    write_study(run, study(run, StudyOptions(label="correct", permutations=0)))
    return run


def test_pyarrow_and_pandas_read_flat_scalars_with_a_map_and_labels(run, tmp_path):
    done = write_view(run, tmp_path / "view.parquet", ViewOptions(), overwrite=False)
    table = pq.read_table(tmp_path / "view.parquet")
    assert (done.rows, done.has_thumbnails, table.num_rows) == (240, False, 240)
    assert [name for name in table.column_names if "." in name] == []
    assert not any(pa.types.is_nested(field.type) for field in table.schema)
    frame = pd.read_parquet(tmp_path / "view.parquet")
    assert {"pc1", "pc2", "question", "answer", "label_correct", "first_token_max", "kind", "sample_id"} <= {*frame}
    assert {*frame["label_correct"].tolist()} == {"true", "false"}
    assert {*frame["reference_answers"].tolist()} == {"yes", "no"}
    predicted = read_predictions(run.path, "correct")
    assert predicted is not None
    by_sample = dict(zip(predicted["sample_id"].to_pylist(), predicted["probe"].to_pylist(), strict=True))
    assert [1 - by_sample[one] for one in frame["sample_id"]] == frame["risk"].tolist()
    points = frame[["pc1", "pc2"]].to_numpy()
    assert np.allclose(points.mean(axis=0), 0, atol=1e-4)
    assert points.std(axis=0)[0] >= points.std(axis=0)[1] > 0
    sentences = ["".join(map(str, parts)) for parts in done.notes]
    assert sentences[0].startswith(f"The map is of {PLANTED}: its two principal components have ")


def test_the_usual_column_is_that_of_a_probe_or_the_last_of_the_query_token(run, tmp_path):
    assert usual_column(run) == PLANTED
    assert usual_column(write_planted(tmp_path / "bare", images=3)) == QUERY.format(2)


def test_of_a_large_run_some_rows_at_equal_distances_are_shown(run, tmp_path):
    done = write_view(run, tmp_path / "view.parquet", ViewOptions(limit=7), overwrite=False)
    indices = pq.read_table(tmp_path / "view.parquet")["input_index"].to_pylist()
    assert (len(indices), indices[0], indices[-1]) == (7, 0, 239)
    assert any("7 of 240 samples are in the file" in "".join(map(str, parts)) for parts in done.notes)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"column": "nope"}, "has no column 'nope'"),
        ({"limit": 0}, "limit=0 is too few"),
        ({"thumbnails": -1}, "thumbnails=-1 is too few"),
    ],
)
def test_what_cannot_be_shown_says_why(run, tmp_path, options, problem):
    with pytest.raises(MidsightError, match=problem):
        write_view(run, tmp_path / "view.parquet", ViewOptions(**options), overwrite=False)
    assert not (tmp_path / "view.parquet").exists()


def test_empty_runs_and_files_that_are_there_are_refused(run, tmp_path):
    empty = write_planted(tmp_path / "empty", images=0)
    with pytest.raises(MidsightError, match="holds no samples, so there is nothing to view"):
        write_view(empty, tmp_path / "view.parquet", ViewOptions(), overwrite=False)
    (tmp_path / "view.parquet").write_text("mine")
    with pytest.raises(MidsightError, match="exists already"):
        write_view(run, tmp_path / "view.parquet", ViewOptions(), overwrite=False)
    assert (tmp_path / "view.parquet").read_text() == "mine"


def test_names_stay_apart_without_dots_and_case():
    assert flat_names(["a.b", "a_b", "A_B", "pc1", ""], ["a"]) == ["a_b", "a_b_2", "A_B_3", "pc1_2", "column"]


def pictured(folder, *, embedded=False):
    """A run of made-up vectors whose three images are files or inside its table; one is missing, one is no image."""
    folder.mkdir()
    images = [encoded(picture((400, 300), 0)), encoded(picture((30, 20), 1)), b"no image"]
    references = [f"{number}.png" for number in range(3)]
    if embedded:
        cells = [{"bytes": data, "path": None} for data in images[:2]]
        rows = pa.table({"image": cells, "question": ["a", "b"]})
        pq.write_table(rows, folder / "data.parquet")
        references = [sample.image for sample in read_table(folder / "data.parquet").samples]
    else:
        for name, data in zip(references, images, strict=True):
            (folder / name).write_bytes(data)
        (folder / "data.jsonl").write_text(json.dumps({"image": "0.png", "question": "a"}) + "\n")
        references.append("gone.png")
    path = folder / ("data.parquet" if embedded else "data.jsonl")
    spec = make_spec(dataset=make_dataset_spec(path=str(path), image_column="image", question_column="question"))
    records = [
        make_record(index, spec, image=reference, image_id=f"image-{index}")
        for index, reference in enumerate(references)
    ]
    write_run(folder / "run", records, spec)
    return midsight.open_run(folder / "run")


def test_thumbnails_are_small_pictures_of_the_files_that_are_there(tmp_path):
    run = pictured(tmp_path / "files")
    done = write_view(run, tmp_path / "view.parquet", ViewOptions(), overwrite=False)
    cells = pq.read_table(tmp_path / "view.parquet")["thumbnail"].to_pylist()
    assert [cell is not None for cell in cells] == [True, True, False, False]
    sizes = [Image.open(io.BytesIO(cell["bytes"])).size for cell in cells[:2]]
    assert sizes == [(SIDE_PX, 120), (30, 20)]
    frame = pd.read_parquet(tmp_path / "view.parquet")
    assert frame["thumbnail"].tolist()[0]["bytes"][:4] == b"RIFF"
    (note,) = ("".join(map(str, parts)) for parts in done.notes if "thumbnail" in str(parts))
    assert "2 of 4 images have a thumbnail" in note
    assert "contains no PNG" in note


def test_images_elsewhere_and_paths_that_lead_out_are_not_shown(tmp_path):
    run = pictured(tmp_path / "files")
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "files" / "0.png").rename(moved / "0.png")
    wanted = {"a": ImageOfRun("0.png", 0), "b": ImageOfRun(str(moved / "0.png"), 1), "c": ImageOfRun("../x", 2)}
    assert make_thumbnails(run, wanted).webp == {}
    assert {*make_thumbnails(run, wanted, moved).webp} == {"a", "b"}
    assert make_thumbnails(run, {"u": ImageOfRun("https://example.org/a.png", 0)}).webp == {}


def test_thumbnails_of_images_inside_a_table(tmp_path):
    run = pictured(tmp_path / "embedded", embedded=True)
    wanted = {"a": ImageOfRun(run.table()["image"][0].as_py(), 0), "b": ImageOfRun("sha256:0000000000000000", 1)}
    made = make_thumbnails(run, wanted)
    assert {*made.webp} == {"a"}


def fake_program(folder, code=0):
    """A program of that name that writes down how it was called."""
    folder.mkdir()
    program = folder / "embedding-atlas"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{folder}/called"\nexit {code}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def test_the_browser_is_started_where_it_is_installed_and_named_where_it_is_not(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "a view.parquet"
    call = ["view", str(run.path), "--out", str(out)]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    arguments = "--x pc1 --y pc2 --disable-projection --text question"
    assert f"uvx embedding-atlas==0.26.0 '{out}' {arguments}\n" in shown.output
    folder = fake_program(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + "/bin")
    started = CliRunner().invoke(app, [*call, "--overwrite"])
    assert started.exit_code == 0, started.output
    assert (folder / "called").read_text().splitlines() == [str(out), *arguments.split()]
    monkeypatch.setenv("PATH", str(fake_program(tmp_path / "broken", 7)) + os.pathsep + "/bin")
    broken = CliRunner().invoke(app, [*call, "--overwrite"])
    assert broken.exit_code == 2
    assert "embedding-atlas ended with exit code 7; the file is written" in " ".join(broken.output.split())

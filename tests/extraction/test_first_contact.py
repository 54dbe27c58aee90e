"""What a new user meets: mistakes found before the model is loaded, images looked for, finished runs, failures told."""

import json
import re
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import midsight
from midsight.checkpoints.adapter import find_fingerprint
from midsight.cli import app
from midsight.extraction import display
from midsight.extraction.todo import Progress, is_in_shard
from midsight.samples import missing
from midsight.samples.tables import read_table
from support.folders import copy_folder, edit_json
from support.pictures import encoded, picture

CALL = {"layers": [0], "max_new_tokens": 1}


def write_data(folder, names, *, images="", id="r"):
    """A table with a question on each image; the images that exist are written with `write_images`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"{id}{n}", "image": f"{images}{name}", "question": "What?"} for n, name in enumerate(names)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(picture((32, 32), number)))


def command(data, checkpoint, out, *more):
    call = ["extract", data, "--model", checkpoint, "--device", "cpu", "--out", out, "--layers", 0]
    return CliRunner().invoke(app, [*map(str, [*call, "--max-new-tokens", 1, *more])])


@pytest.fixture
def no_weights(monkeypatch):
    """Fails a test that loads weights."""
    monkeypatch.setattr("midsight.checkpoints.loading.LoadChoice", None)


def test_missing_images_are_counted_before_the_start_and_their_folder_is_suggested(
    checkpoint, tmp_path, no_weights, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / "data", ["0.png", "1.png", "2.png"])
    write_images(tmp_path / "data", ["2.png"])
    write_images(tmp_path / "data" / "pictures", ["0.png", "1.png"])
    planned = command(data, checkpoint, tmp_path / "run", "--dry-run")
    folder = tmp_path / "data"
    assert planned.output.splitlines()[0] == (
        f"2 of 3 image files are missing, the first is {folder / '0.png'}; a file of this name is below "
        f"{folder / 'pictures'}, so try --images {folder / 'pictures'}."
    )
    assert planned.exit_code == 0


def test_only_some_of_very_many_images_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(missing, "MOST_FILES", 10)
    found = missing.find_missing([tmp_path / str(n) for n in range(35)], tmp_path)
    assert found is not None
    assert (found.files, found.checked, found.missing, found.likely) == (35, 9, 9, None)
    assert "".join(map(str, found.describe())) == (
        f"9 of 9 image files that were looked for, of 35, are missing, the first is {tmp_path / '0'}."
    )


def test_a_run_that_would_lack_its_first_100_images_is_not_started(checkpoint, tmp_path, no_weights):
    data = write_data(tmp_path, [f"{n}.png" for n in range(101)])
    write_images(tmp_path, ["100.png"])
    stopped = command(data, checkpoint, tmp_path / "run")
    assert stopped.exit_code == 3
    assert "None of the first 100 samples has its image, so nothing was started; correct --images, or go on with " in (
        stopped.output
    )
    assert "--keep-going." in stopped.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_whose_first_100_samples_fail_stops_with_the_commonest_reason(checkpoint, tmp_path):
    data = write_data(tmp_path, [f"{n}.png" for n in range(101)])
    for n in range(100):
        (tmp_path / f"{n}.png").write_bytes(b"no image")
    write_images(tmp_path, ["100.png"])
    stopped = command(data, checkpoint, tmp_path / "run", "--batch-size", 1)
    assert stopped.exit_code == 3, stopped.output
    assert "The first 100 samples all failed: The image" in stopped.output
    assert "(all 100 are like this). Correct that, then add --retry-failed, or go on with --keep-going." in (
        stopped.output
    )
    assert len(midsight.open_run(tmp_path / "run").failures()) >= 100
    again = command(data, checkpoint, tmp_path / "run", "--batch-size", 1, "--keep-going")
    assert again.exit_code == 1
    assert f"{tmp_path / 'run'}: 1 sample stored, 100 failed." in again.output


def test_rows_that_are_no_samples_do_not_stop_a_run_with_good_ones(model, tmp_path):
    write_images(tmp_path, ["0.png"])
    data = write_data(tmp_path, ["../outside.png"] * 120 + ["0.png"])
    with pytest.warns(UserWarning, match=r"^120 samples failed, 1 stored: .*\(all 120 are like this\); run.failures"):
        run = midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert len(run) == 1


def test_a_table_without_a_usable_row_is_not_started(checkpoint, tmp_path, no_weights):
    data = write_data(tmp_path, ["../outside.png"] * 120)
    stopped = command(data, checkpoint, tmp_path / "run")
    assert stopped.exit_code == 3
    assert "The first 120 samples all failed: " in stopped.output
    assert not (tmp_path / "run").exists()
    assert command(data, checkpoint, tmp_path / "run", "--keep-going").exit_code == 1


@pytest.mark.parametrize(("lost", "exit_code"), [(0, 0), (1, 1)])
def test_a_finished_run_loads_no_weights_and_ends_as_it_did(checkpoint, tmp_path, monkeypatch, lost, exit_code):
    write_images(tmp_path, ["0.png", "1.png"])
    data = write_data(tmp_path, ["0.png", "1.png", "2.png"][: 2 + lost])
    first = command(data, checkpoint, tmp_path / "run")
    monkeypatch.setattr("midsight.checkpoints.loading.LoadChoice", None)
    again = command(data, checkpoint, tmp_path / "run")
    assert first.exit_code == again.exit_code == exit_code, again.output
    assert "nothing to do." in again.output
    assert first.output.splitlines()[-2 * lost - 1 :][0] == f"{tmp_path / 'run'}: 2 samples stored, {lost} failed."
    assert again.output.splitlines()[-2 * lost - 1 :] == first.output.splitlines()[-2 * lost - 1 :]


@pytest.mark.slow
def test_a_shard_without_samples_that_starts_first_is_done_and_leaves_a_run(model, checkpoint, tmp_path):
    data = write_data(tmp_path, ["0.png"])
    write_images(tmp_path, ["0.png"])
    (sample,) = read_table(data).samples
    own = next(number for number in range(9) if is_in_shard(sample, (number, 9)))
    empty = command(data, checkpoint, tmp_path / "run", "--shard", f"{(own + 1) % 9}/9")
    assert (empty.exit_code, "0 samples stored, 0 failed by all 9 shards" in empty.output) == (0, True), empty.output
    assert midsight.open_run(tmp_path / "run").spec.model.attention == "sdpa"
    assert command(data, checkpoint, tmp_path / "run", "--shard", f"{own}/9").exit_code == 0
    assert len(midsight.open_run(tmp_path / "run")) == 1


@pytest.mark.parametrize("rows", [[], "image,question\n"])
def test_data_without_rows_are_named(model, tmp_path, rows):
    data = rows
    if rows:
        data = tmp_path / "a.csv"
        data.write_text(rows)
    named = re.escape("The dataset" if not rows else str(data))
    with pytest.raises(midsight.MidsightError, match=f"^{named} has no rows, so there is nothing to extract"):
        midsight.extract(data, model=model, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limit": 1.5}, "limit is 1.5; give 1 or more."),
        ({"limit": "2"}, "limit is 2; give 1 or more."),
        ({"shard": "0/1"}, "shard is '0/1'; give (I, N), like (0, 4) for the first of four."),
        ({"max_new_tokens": 1.0}, "max_new_tokens is 1.0; give 1 or more, or answers=False."),
        ({"prompt": None}, "prompt is None; give a text."),
        ({"system": 3}, "system is 3; give a text."),
        ({"positions": None}, "positions contains None; choose from vision_token, query_token, image_mean."),
        ({"commit_seconds": float("nan")}, "commit_seconds is nan; give a number from 0."),
        ({"commit_seconds": "a"}, "commit_seconds is 'a'; give a number from 0."),
        ({"data": 3}, "The data are a int; give a file, a folder, a table, or (image, question) pairs."),
    ],
)
def test_values_of_other_types_are_named(model, tmp_path, wrong, said):
    call = {"data": [(picture((8, 8), 0), "What?")], **CALL, **wrong}
    with pytest.raises(midsight.MidsightError) as error:
        midsight.extract(call.pop("data"), model=model, out=tmp_path / "run", progress=None, **call)
    assert str(error.value) == said
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_and_an_iterator_of_dicts_are_taken(model, tmp_path):
    rows = ({"image": picture((8, 8), n), "question": "What?"} for n in range(3))
    call = {"limit": np.int64(2), "layers": np.arange(1), "max_new_tokens": np.int64(1)}
    assert len(midsight.extract(rows, model=model, out=tmp_path / "run", progress=None, **call)) == 2


def test_counts_before_the_start_and_at_the_end_agree(model, tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    data = write_data(tmp_path, ["0.png", "1.png", "2.png"])
    seen = []
    midsight.extract(data, model=model, out=tmp_path / "run", limit=1, progress=seen.append, **CALL)
    midsight.extract(data, model=model, out=tmp_path / "run", progress=seen.append, **CALL)
    midsight.extract(data, model=model, out=tmp_path / "run", progress=seen.append, **CALL)
    last = seen[-1]
    assert (last.samples, last.already, last.already_failed, last.all_failed, last.remaining) == (3, 3, 1, 1, 0)
    assert "3 done before (1 of them failed), nothing to do." in display.describe_start(last)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda out: out.write_text("x"), "run is a file, and a run is a folder; give another --out."),
        (
            lambda out: write_images(out, ["a.png"]),
            "run holds other files, like a.png, and is not a run; give --out a folder that is new, empty or a run.",
        ),
    ],
)
def test_a_folder_that_is_no_run_is_refused(checkpoint, tmp_path, no_weights, make, said):
    data = write_data(tmp_path / "data", ["0.png"])
    make(tmp_path / "run")
    refused = command(data, checkpoint, tmp_path / "run")
    assert refused.exit_code == 2
    assert refused.output.splitlines()[-1] == f"Error: {tmp_path}/{said}"


def test_a_folder_that_cannot_be_written_is_refused_before_anything_else(checkpoint, tmp_path, no_weights, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    refused = command(tmp_path / "nope.jsonl", checkpoint, tmp_path / "new" / "run")
    assert refused.exit_code == 2
    assert refused.output.splitlines()[-1] == (
        f"Error: {tmp_path / 'new' / 'run'} cannot be written: Permission denied in {tmp_path}; give another --out, or "
        "change its permissions."
    )


def test_what_a_dead_process_left_before_run_json_is_no_obstacle(model, tmp_path):
    for folder in ("parts", "locks"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    write_images(tmp_path, ["0.png"])
    assert len(midsight.extract(write_data(tmp_path, ["0.png"]), model=model, out=tmp_path / "run", **CALL)) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "0,99"], "--layers contains 99, and the model has the layers 0 to 7"),
        (["--positions", "middle"], "--positions contains 'middle'"),
        (["--prompt", "Hi"], "--prompt is 'Hi'"),
        (["--limit", "0"], "--limit is 0"),
        (["--prompt", "<|end|>{question}"], "--prompt contains the control token '<|end|>'"),
        (["--system", "<|assistant|>"], "--system contains the control token '<|assistant|>'"),
        (["--system", "<image>"], "--system contains the control token '<image>'"),
        (["--prompt-template", "nowhere.jinja"], "--prompt-template is 'nowhere.jinja', which cannot be read"),
    ],
)
def test_wrong_options_are_found_before_the_model_is_opened(checkpoint, tmp_path, monkeypatch, more, said):
    monkeypatch.setattr("midsight.checkpoints.loading.open_model", None)
    refused = command(write_data(tmp_path, ["0.png"]), checkpoint, tmp_path / "run", *more)
    assert refused.exit_code == 2
    assert said in refused.output


def test_another_spec_than_the_runs_is_found_before_the_weights_are_loaded(checkpoint, tmp_path, monkeypatch):
    write_images(tmp_path, ["0.png"])
    data = write_data(tmp_path, ["0.png"])
    command(data, checkpoint, tmp_path / "run")
    monkeypatch.setattr("midsight.checkpoints.loading.LoadChoice", None)
    refused = command(data, checkpoint, tmp_path / "run", "--pixels", "transformers")
    assert refused.exit_code == 2
    assert "was started with --pixels pil, and this call has --pixels transformers" in refused.output


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "0,1"], "with --layers 0, and this call has --layers 0,1"),
        (["--residual"], "with no --residual, and this call has --residual"),
        (["--no-share"], "with --share, and this call has --no-share"),
        (["--no-answers"], "with --answers, and this call has --no-answers"),
        (["--prompt", "{question} Why?"], "with --prompt '{question}', and this call has --prompt '{question} Why?'"),
        (["--question-column", "id"], "with --question-column question, and this call has --question-column id"),
        (["--dtype", "bfloat16"], "with --dtype float32, and this call has --dtype bfloat16"),
        (["--device", "cuda:1"], "with --device cpu, and this call has --device cuda"),
        (["--lora", "off"], "with --lora merged, and this call has --lora off"),
        (["--pixels", "transformers"], "with --pixels pil, and this call has --pixels transformers"),
        (["--prompt-template", "raw"], "and this call has --prompt-template raw (SHA-256 none)"),
    ],
)
def test_another_spec_than_the_runs_is_found_before_the_model_is_opened(one_row, checkpoint, monkeypatch, more, said):
    data, run = one_row
    monkeypatch.setattr("midsight.checkpoints.loading.open_model", None)
    refused = command(data, checkpoint, run, *more)
    assert refused.exit_code == 2, refused.output
    assert said in refused.output


def test_another_model_than_the_runs_is_named_before_it_is_opened(one_row, checkpoint, tmp_path, monkeypatch):
    data, run = one_row
    other = copy_folder(checkpoint, tmp_path / "other")
    edit_json(other / "config.json", lambda config: config.update(note="fine-tuned"))
    monkeypatch.setattr("midsight.checkpoints.loading.open_model", None)
    refused = command(data, other, run)
    assert refused.exit_code == 2, refused.output
    assert f"was started with --model {checkpoint} (SHA-256 " in refused.output
    assert f"and this call has --model {other} (SHA-256 " in refused.output


def test_a_model_that_is_nowhere_is_named_before_anything_is_imported_for_it(one_row, tmp_path, monkeypatch):
    data, _ = one_row
    monkeypatch.setattr("midsight.checkpoints.loading.open_model", None)
    refused = command(data, tmp_path / "nope", tmp_path / "run")
    assert refused.exit_code == 2, refused.output
    assert f"{tmp_path / 'nope'} is neither a folder nor a hub id like owner/name; give one of them." in refused.output


def test_the_fingerprint_before_a_model_is_opened_is_the_one_after(checkpoint, model):
    assert find_fingerprint(checkpoint) == model.loaded.fingerprint


@pytest.mark.parametrize("extract", ["in the shell", "in Python"])
def test_a_finished_run_is_opened_without_its_model(one_row, checkpoint, monkeypatch, capsys, extract):
    data, run = one_row
    monkeypatch.setattr("midsight.checkpoints.loading.open_model", None)
    monkeypatch.setattr("midsight.extraction.run.open_model", None)
    if extract == "in the shell":
        assert command(data, checkpoint, run).output.splitlines() == [
            "1 sample on 1 image, 1 done before, nothing to do.",
            f"{run}: 1 sample stored, 0 failed.",
        ]
    else:
        assert len(midsight.extract(data, model=checkpoint, out=run, **CALL)) == 1
        assert capsys.readouterr().err.splitlines()[0] == "1 sample on 1 image, 1 done before, nothing to do."


@pytest.mark.parametrize("more", [["--retry-failed"], ["--limit", "1"]])
def test_a_run_that_has_work_left_is_not_finished(checkpoint, tmp_path, monkeypatch, more):
    write_images(tmp_path, ["0.png"])
    data = write_data(tmp_path, ["0.png", "1.png"])
    assert command(data, checkpoint, tmp_path / "run").exit_code == 1
    opened = []
    monkeypatch.setattr("midsight.checkpoints.loading.open_model", lambda *_, **__: opened.append(1))
    command(data, checkpoint, tmp_path / "run", *more)
    assert bool(opened) == (more == ["--retry-failed"])


@pytest.fixture(scope="module")
def one_row(model, tmp_path_factory):
    """The table and the folder of a finished run of one sample."""
    folder = tmp_path_factory.mktemp("one-row")
    write_images(folder, ["0.png"])
    data = write_data(folder, ["0.png"])
    midsight.extract(data, model=model, out=folder / "run", **CALL)
    return data, folder / "run"


def test_other_data_than_the_runs_are_named_with_path_and_rows(one_row, checkpoint, tmp_path, monkeypatch):
    _, run = one_row
    write_images(tmp_path, ["0.png", "1.png"])
    data = write_data(tmp_path, ["0.png", "1.png"])
    monkeypatch.setattr("midsight.checkpoints.loading.open_model", None)
    refused = command(data, checkpoint, run)
    assert refused.exit_code == 2
    assert re.search(r"was started with DATA \S+ \(1 row, SHA-256 \w{16}\), and this call has DATA", refused.output)
    assert f"{data} (2 rows, SHA-256 " in refused.output


def test_a_model_without_weights_is_loaded_when_it_is_needed(checkpoint, tmp_path):
    bare = midsight.load(checkpoint, device="cpu", weights=False)
    with pytest.raises(midsight.MidsightError, match=r"was loaded with weights=False; load it again without that\.$"):
        bare.extract(encoded(picture((32, 32), 1)), "What?")
    write_images(tmp_path, ["0.png"])
    run = midsight.extract(write_data(tmp_path, ["0.png"]), model=bare, out=tmp_path / "run", **CALL)
    assert run.spec.model.attention == "sdpa"
    assert run.spec.model.fixes


def test_python_shows_the_progress_unless_it_is_told_not_to(checkpoint, tmp_path, capsys):
    write_images(tmp_path, ["0.png", "1.png"])
    data = write_data(tmp_path, ["0.png", "1.png"])
    midsight.extract(data, model=checkpoint, out=tmp_path / "run", **CALL)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("2 samples on 2 images, 0 done before, 2 to do; about ")
    assert shown[1] == f"Loading {checkpoint}."
    assert "attention made bidirectional" in shown[2]
    assert re.fullmatch(r"2 of 2 samples, 0 failed, [\d.,]+ per second", shown[-1])
    midsight.extract(data, model=checkpoint, out=tmp_path / "quiet", progress=None, **CALL)
    assert capsys.readouterr() == ("", "")


def test_images_that_come_out_nearly_black_are_named_and_then_counted(checkpoint, tmp_path, monkeypatch):
    names = [f"{n}.png" for n in range(4)]
    data = write_data(tmp_path, [*names, "0.png"])
    for name in names:
        Image.fromarray(np.full((32, 32), 4_000, np.uint16)).save(tmp_path / name)

    def said(out):
        done = command(data, checkpoint, tmp_path / out, "--no-answers")
        return sorted(line for line in done.output.splitlines() if "nearly black" in line)

    notes = said("run")
    assert len(notes) == 4
    for name, note in zip(names, notes, strict=True):
        assert note.startswith(f"Note: The image {tmp_path / name} stores 16-bit grey values")
    monkeypatch.setattr(display, "MOST_NOTES", 1)
    few = said("few")
    assert few[0] == "Note: 3 more images come out nearly black."
    assert len(few) == 2


def test_a_notebook_gets_one_line_that_is_replaced(monkeypatch, capsys):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    notebook = ModuleType("IPython.display")
    notebook.__dict__["display"] = lambda *_, **__: Handle()
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    monkeypatch.setattr("rich.console.Console.is_jupyter", property(lambda _: True), raising=False)
    monkeypatch.setattr("midsight.extraction.display.Console", lambda **_: Jupyter())
    with display.display("bar") as spoken:
        spoken.start(progress(done=0), [("Hello.",)])
        spoken.progress(progress(done=0))
        spoken.progress(progress(done=4))
    assert capsys.readouterr().err.splitlines()[0] == "Hello."
    assert [line.split(" samples")[0] for line in shown] == ["4 of 4"]


class Jupyter:
    is_jupyter = True


def progress(done):
    return Progress(
        samples=4, images=2, already=0, already_failed=0, done=done, failed=0, estimated_bytes=1, free_bytes=1
    )


def test_a_line_of_progress_says_what_is_left():
    assert display.describe_progress(progress(done=1), 2.0) == "1 of 4 samples, 0 failed, 0.5 per second, 0:00:06 left"


def test_a_run_says_once_that_samples_fail_only_together(checkpoint, tmp_path, together_fails):
    write_images(tmp_path, ["0.png"])
    done = command(write_data(tmp_path, ["0.png"] * 4), checkpoint, tmp_path / "run", "--batch-size", 2)
    assert done.exit_code == 0
    assert done.output.count("A call of 2 samples failed (ValueError: a shape)") == 1

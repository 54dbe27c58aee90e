"""The demo model: a small file becomes a complete folder, and the model answers from its image."""

import json
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from midsight import load
from midsight.cli import app
from midsight.demo import seeing
from midsight.demo.folder import write_checksums
from midsight.demo.scenes import ask, draw, make_scene
from midsight.demo.score import is_right
from midsight.demo.seeing import PACKED, seeing_model, write_seeing_model
from midsight.errors import MidsightError

CARD = (Path(__file__).parents[2] / "docs" / "demo_model.md").read_text(encoding="utf-8")
TESTED = 500
BLANK = Image.new("RGB", (64, 64), (235, 235, 235))


def card(condition):
    """Lower bound, share of right answers and upper bound in the card's table of the tests, from 0 to 1."""
    row = re.search(
        rf"\| {condition} \| ([\d.]+) % \(([\d.]+) to ([\d.]+)\) \|\n", CARD[CARD.index("figures of the tests") :]
    )
    assert row is not None
    value, low, high = (float(number) / 100 for number in row.groups())
    return low, value, high


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_seeing_model(tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def samples():
    """(picture, scene index, question) of the first questions about test scenes."""
    found = []
    for index in range(TESTED):
        image = draw(make_scene("test", index))
        found += [(image, index, question) for question in ask("test", index)]
        if len(found) >= TESTED:
            break
    return found[:TESTED]


def answer_all(model, pairs):
    return model.extract_many(pairs, layers="3", positions="query_token", vision="none", max_new_tokens=8)


def share_right(records, samples):
    return np.mean([is_right(r.answer, [q.answer]) for r, (_, _, q) in zip(records, samples, strict=True)])


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def seen(model, samples):
    return answer_all(model, [(image, question.text) for image, _, question in samples])


def test_the_shipped_file_is_small_and_the_folder_complete(folder):
    assert PACKED.stat().st_size <= 3e6
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files >= {
        "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json",
        "chat_template.jinja", "vision-lora/adapter_config.json", "vision-lora/adapter_model.safetensors",
    }  # fmt: skip


def test_the_folder_loads_like_any_other_with_its_lora_merged(model):
    assert (model.loaded.format, model.loaded.lora) == ("transformers", "merged")
    assert (model.loaded.n_layers, model.loaded.hidden_size) == (4, 64)
    assert len(model.loaded.fixes) == 1


def test_the_cache_is_written_once_and_completely(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = seeing_model()
    assert first.parent == tmp_path / "midsight"
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert seeing_model() == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


@pytest.mark.parametrize("damage", ["no LoRA", "weights cut short", "empty folder"])
def test_a_damaged_cache_is_written_again(damage, tmp_path):
    folder = seeing_model(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if damage == "weights cut short":
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(5_000_000)
    else:
        shutil.rmtree(folder / "vision-lora" if damage == "no LoRA" else folder)
    if damage == "empty folder":
        folder.mkdir()
    assert seeing_model(tmp_path) == folder
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.fixture
def small_files_only():
    """Limits files of this process to 8 MB during the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files_only")
def test_a_write_cut_short_leaves_no_model_behind(tmp_path):
    with pytest.raises(MidsightError, match=r"cannot be written to .*File too large.*XDG_CACHE_HOME"):
        seeing_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_faster_process_is_kept(tmp_path, monkeypatch):
    target = tmp_path / f"demo-model-{seeing.content_address()}"
    theirs: list[int] = []

    def slow(folder):
        write_checksums(write_seeing_model(target))
        theirs.append(target.stat().st_ino)
        return write_seeing_model(folder)

    monkeypatch.setattr(seeing, "write_seeing_model", slow)
    assert seeing_model(tmp_path).stat().st_ino == theirs[0]


def test_another_shipped_file_gets_another_folder(tmp_path, monkeypatch):
    other = tmp_path / "seeing.safetensors"
    other.write_bytes(PACKED.read_bytes() + b" ")
    before = seeing.content_address()
    monkeypatch.setattr(seeing, "PACKED", other)
    assert seeing.content_address() != before


def test_a_relative_cache_folder_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert seeing.cache_folder() == tmp_path / ".cache" / "midsight"


def test_ids_that_training_never_used_share_one_row(model):
    rows = model.loaded.hf_model.get_input_embeddings().weight
    unused = torch.ones(len(rows), dtype=torch.bool)
    unused[load_file(PACKED)["token_ids"].long()] = False
    assert unused.sum() > 199_000
    assert bool((rows[unused] == rows[unused][0]).all())
    assert not bool((rows[~unused] == rows[unused][0]).all(dim=1).any())


def test_model_only_writes_a_folder_and_leaves_the_cache_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = CliRunner().invoke(app, ["demo", "--model-only", str(tmp_path / "model")])
    assert done.exit_code == 0
    assert str(tmp_path / "model") in done.output
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_hidden_layers"] == 4
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("option", ["--model-only", "--checkpoint-only"])
@pytest.mark.parametrize("there", ["a folder with a file", "a file"])
def test_an_existing_file_or_folder_is_not_overwritten(option, there, tmp_path):
    target = tmp_path / "mine"
    kept = target
    if there != "a file":
        target.mkdir()
        kept = target / "notes"
    kept.write_text("mine")
    done = CliRunner().invoke(app, ["demo", option, str(target)])
    assert done.exit_code == 2
    assert re.fullmatch(rf"Error: The model cannot be written to {target} \(.+\); name a folder .*\n", done.output)
    assert kept.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_demo_names_the_folder_that_it_cannot_write(tmp_path):
    (out := tmp_path / "out").write_text("mine")
    done = CliRunner().invoke(app, ["demo", "--out", str(out)])
    assert done.exit_code == 2
    assert done.output == f"Error: The demo cannot write to {out} (File exists); give another --out.\n"


@pytest.mark.slow
def test_answers_are_right_as_often_as_the_card_says(seen, samples):
    low, value, high = card("right picture")
    right = share_right(seen, samples)
    assert low <= right <= high
    assert right == pytest.approx(
        value, abs=0.004
    )  # the card comes from another forward pass, where near-ties may flip
    assert all(record.finish_reason == "stop" for record in seen)


@pytest.mark.slow
def test_every_kind_has_wrong_answers_and_is_above_chance(seen, samples):
    chance = {"presence": 0.5, "color": 1 / 8, "shape": 1 / 4, "count": 0.4}
    for kind, level in chance.items():
        of_kind = [is_right(r.answer, [q.answer]) for r, (_, _, q) in zip(seen, samples, strict=True) if q.kind == kind]
        assert level + 0.1 < np.mean(of_kind) < 1, kind


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["blank picture", "another picture", "LoRA off"])
def test_without_its_image_or_its_lora_accuracy_falls_as_the_card_says(condition, folder, model, samples):
    asked = model
    pairs = [(image, question.text) for image, _, question in samples]
    if condition == "blank picture":
        pairs = [(BLANK, text) for _, text in pairs]
    elif condition == "another picture":
        pairs = [(draw(make_scene("test", index + 1)), question.text) for _, index, question in samples]
    else:
        asked = load(folder, device="cpu", lora="off")
    right = share_right(answer_all(asked, pairs), samples)
    low, value, high = card(condition)
    assert low <= right <= high
    assert value < card("right picture")[1] - 0.25
    assert right <= card("question alone")[2]


@pytest.mark.slow
def test_presence_is_read_from_the_query_state_and_not_from_the_words(seen, samples):
    chosen = [i for i, (_, _, question) in enumerate(samples) if question.kind == "presence"]
    states = np.stack([seen[i].query_token_representation[3] for i in chosen])
    words = sorted({word for i in chosen for word in samples[i][2].text.split()})
    of_words = np.array([[word in samples[i][2].text.split() for word in words] for i in chosen], dtype=float)
    truth = np.array([samples[i][2].answer == "yes" for i in chosen])
    scenes = np.array([samples[i][1] for i in chosen])
    from_states, from_words = (probe(features, truth, scenes) for features in (states, of_words))
    assert from_words < 0.65
    assert from_states > from_words + 0.08


def probe(features, truth, scenes):
    """Accuracy of a ridge classifier on held-out scenes, four folds."""
    right = 0
    for fold in range(4):
        held_out = scenes % 4 == fold
        mean, spread = features[~held_out].mean(axis=0), features[~held_out].std(axis=0) + 1e-6
        scaled = np.c_[(features - mean) / spread, np.ones(len(features))]
        fitted = scaled[~held_out]
        penalty = 10.0 * np.eye(fitted.shape[1])
        weights = np.linalg.solve(fitted.T @ fitted + penalty, fitted.T @ np.where(truth[~held_out], 1.0, -1.0))
        right += ((scaled[held_out] @ weights > 0) == truth[held_out]).sum()
    return right / len(truth)

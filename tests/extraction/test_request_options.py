"""Options as values: one list of names, wrong ones refused, and what a run records of them."""

import inspect
import subprocess
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

import midsight
from midsight.errors import LOAD_OPTIONS, MidsightError
from midsight.extraction import describe
from midsight.extraction.request import REQUEST_OPTIONS, Request, RequestKeywords
from midsight.extraction.task import DATASET_OPTIONS, OWN_OPTIONS, split_options
from midsight.samples.options import DatasetOptions
from midsight.samples.tables import make_samples
from support.pictures import CASES, encoded, picture, write_csv

ROOT = Path(__file__).parents[2]


def test_the_keywords_of_a_call_are_the_fields_of_request():
    assert get_type_hints(RequestKeywords) == get_type_hints(Request)
    assert all(field.default is not MISSING for field in fields(Request)), "every option has a default"


def test_no_option_has_two_meanings():
    assert not DATASET_OPTIONS & REQUEST_OPTIONS
    assert not OWN_OPTIONS & (DATASET_OPTIONS | REQUEST_OPTIONS)


def test_the_arguments_of_extract_are_known_by_name():
    own = {*inspect.signature(midsight.extract).parameters} - {"data", "options"}
    assert own == OWN_OPTIONS


def test_options_become_the_two_values():
    dataset, request = split_options({"id_column": "n", "layers": [0], "system": ""})
    assert dataset == DatasetOptions(id_column="n")
    assert request == Request(layers=[0], system="")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("layrs", "layers"),
        ("max_tokens", "max_new_tokens"),
        ("questions_column", "question_column"),
        ("batchsize", "batch_size"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_right_one(wrong, right, model, tmp_path):
    options: Any = {wrong: 1}
    said = f"^There is no option '{wrong}'; did you mean {right}\\?$"
    with pytest.raises(MidsightError, match=said):
        midsight.extract([("a.png", "?")], model=model, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    if right in REQUEST_OPTIONS:
        with pytest.raises(MidsightError, match=said):
            model.extract(CASES[0].image, "?", **options)


@pytest.mark.parametrize("name", sorted(LOAD_OPTIONS))
def test_an_option_of_load_is_named_as_one(name, model, tmp_path):
    options: Any = {name: "cpu"}
    for call in (
        lambda: midsight.extract([("a.png", "?")], model=model, out=tmp_path / "run", **options),
        lambda: model.extract(CASES[0].image, "?", **options),
    ):
        with pytest.raises(MidsightError, match=f"^{name} is an option of midsight.load; load the model with it"):
            call()


def test_the_options_of_load_are_all_known():
    assert set(inspect.signature(midsight.load).parameters) - {"source"} == LOAD_OPTIONS


def test_a_name_that_is_like_none_gets_the_list(model):
    options: Any = {"xyz": 1}
    with pytest.raises(
        MidsightError, match=r"^There is no option 'xyz'; the options are abstain_above, answers, layers, .*vision\.$"
    ):
        model.extract(CASES[0].image, "?", **options)


def test_one_sample_has_no_batch_size(model):
    options: Any = {"batch_size": 2}
    with pytest.raises(MidsightError, match=r"^There is no option 'batch_size'; the options are"):
        model.extract(CASES[0].image, "?", **options)
    options = {"batchsize": 2}
    with pytest.raises(MidsightError, match=r"^There is no option 'batchsize'; did you mean batch_size\?$"):
        model.extract_many([(CASES[0].image, "?")], **options)


def test_columns_are_named_in_python_as_in_the_command(model, tmp_path):
    data = write_csv(tmp_path, [(64, 64)], ["q0,0.png,What is it?"])
    renamed = data.with_name("renamed.csv")
    renamed.write_text(data.read_text().replace("question", "asked").replace("id,", "name,", 1))
    call = {"model": model, "layers": [0], "answers": False}
    run = midsight.extract(renamed, out=tmp_path / "run", question_column="asked", id_column="name", **call)
    assert run.sample_ids() == ["q0"]
    assert (run.spec.dataset.question_column, run.spec.dataset.id_column) == ("asked", "name")
    with pytest.raises(MidsightError, match=r"has no column 'question'.*question_column"):
        midsight.extract(renamed, out=tmp_path / "other", **call)


@pytest.mark.parametrize("data", [[("a.png", "?")], make_samples([("a.png", "?")])], ids=["pairs", "dataset"])
def test_options_that_need_a_table_are_refused_for_pairs(data, model, tmp_path):
    with pytest.raises(MidsightError, match=r"^id_column is for a file, a folder or an hf:// name; leave it out\.$"):
        midsight.extract(data, model=model, out=tmp_path / "run", id_column="n")


def test_a_run_records_its_request_prompt_and_model_once(model, tmp_path):
    pairs = [(encoded(picture((64, 64), 1)), "What is it?")]
    run = midsight.extract(pairs, model=model, out=tmp_path / "run", layers=[0, -1], max_new_tokens=2, system="Hi.")
    spec = run.spec
    assert (spec.request.layers, spec.request.answers, spec.request.max_new_tokens) == ((0, 7), True, 2)
    assert spec.prompt.rendered == "<|system|>Hi.<|end|><|user|><|endoftext10|>What is it?<|end|><|assistant|>"
    assert (spec.prompt.template, spec.prompt.is_published) == ("folder", True)
    assert (spec.model.family, spec.model.lora, spec.model.format) == ("Phi-4-multimodal", "merged", "transformers")
    assert spec.model.fixes == model.loaded.fixes
    other = midsight.extract(pairs, model=model, out=tmp_path / "other", layers=[0, -1], max_new_tokens=2)
    assert spec.run_id != other.spec.run_id


def head() -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this copy is not a git checkout")
def test_a_checkout_records_its_commit():
    commit = describe.midsight_commit()
    assert commit is not None
    assert commit.removesuffix("-dirty") == head()


def test_an_installed_copy_records_the_commit_that_pip_knows(monkeypatch, tmp_path):
    url = '{"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}'
    monkeypatch.setattr(describe, "distribution", lambda _: SimpleNamespace(read_text=lambda _: url))
    assert describe.midsight_commit() == "c0ffee"


def test_a_copy_inside_another_repository_records_none(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "version.py").write_text("")
    assert describe.checkout_commit(tmp_path) is None

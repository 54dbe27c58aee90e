"""Answers follow the folder's generation config as `generate(do_sample=False)` does, for every setting that counts."""

import json
from typing import Any

import pytest

import midsight
from midsight.check.facts import read_facts
from midsight.check.proof import shipped_samples
from midsight.testing import check_family, write_qwen2_vl
from support.family_reference import FAMILIES, FamilyReference
from support.folders import assert_sentence, edit_json, said_by
from support.parity import rgb
from support.pictures import CASES

NEW_TOKENS = 16
QUESTION = "What is the picture?"
"""Its plain answer has ten tokens, so that every setting below changes it."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_qwen2_vl(tmp_path_factory.mktemp("generation") / "model")


@pytest.fixture(scope="module")
def loaded(plain):
    return midsight.load(plain, device="cpu")


@pytest.fixture(scope="module")
def reference(plain):
    return FamilyReference(plain, FAMILIES["qwen2_vl"])


def with_settings(model, reference, new_tokens=NEW_TOKENS, **settings):
    """midsight's answers and those of transformers under a generation config."""
    config = type(reference.model.generation_config)(eos_token_id=list(model.loaded.stop_ids), **settings)
    reference.model.generation_config = config
    wrapped = midsight.wrap(reference.model, model.loaded.processor)
    questions = [(CASES[0].image, QUESTION), (CASES[3].image, QUESTION), (CASES[0].image, "And now?")]
    records: Any = wrapped.extract_many(questions, max_new_tokens=new_tokens)
    plain: Any = wrapped.extract_many(questions, max_new_tokens=new_tokens, plain_greedy=True)
    expected = [
        tuple(reference.answer(reference.inputs([rgb(image)], question), new_tokens)) for image, question in questions
    ]
    return [r.answer_token_ids for r in records], expected, [r.answer_token_ids for r in plain]


def first_tokens(model, n=40):
    """Tokens that plain answers contain."""
    record = model.extract(CASES[0].image, QUESTION, max_new_tokens=NEW_TOKENS)
    return list(dict.fromkeys(record.answer_token_ids))[:n]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "repetition_penalty",
        "encoder_repetition_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "suppress_tokens",
        "begin_suppress_tokens",
        "min_new_tokens",
        "min_length",
        "forced_eos_token_id",
        "exponential_decay_length_penalty",
        "sequence_bias",
    ],
)
def test_answers_equal_those_of_generate(loaded, reference, name):
    said = first_tokens(loaded)
    values = {
        "repetition_penalty": 1.7,
        "encoder_repetition_penalty": 0.6,
        "no_repeat_ngram_size": 1,
        "encoder_no_repeat_ngram_size": 1,
        "bad_words_ids": [[token] for token in said[:4]],
        "suppress_tokens": said[:4],
        "begin_suppress_tokens": said[:1],
        "min_new_tokens": NEW_TOKENS,
        "min_length": 60,
        "forced_eos_token_id": loaded.loaded.stop_ids[0],
        "exponential_decay_length_penalty": (2, 1.9),
        "sequence_bias": [[[said[0]], -30.0]],
    }
    new_tokens = 3 if name == "forced_eos_token_id" else NEW_TOKENS
    ours, theirs, plain = with_settings(loaded, reference, new_tokens, **{name: values[name]})
    assert ours == theirs
    if name != "encoder_no_repeat_ngram_size":
        assert ours != plain, "the setting changed nothing, so the test shows nothing"


def test_several_settings_act_in_the_order_of_transformers(loaded, reference):
    said = first_tokens(loaded)
    ours, theirs, _ = with_settings(
        loaded, reference, repetition_penalty=1.3, no_repeat_ngram_size=2, suppress_tokens=said[:2], min_new_tokens=9
    )
    assert ours == theirs


@pytest.fixture
def folder(tmp_path):
    return write_qwen2_vl(tmp_path / "model")


def test_a_run_records_the_settings_and_check_proves_them(folder, tmp_path):
    edit_json(folder / "generation_config.json", lambda config: config.update(repetition_penalty=1.5, do_sample=True))
    model = midsight.load(folder, device="cpu")
    (note,) = (note for note in model.loaded.notes if "generation config" in note)
    assert "repetition_penalty=1.5" in note
    assert note in read_facts(folder).notes
    checks = check_family(model, shipped_samples()[:1], max_new_tokens=8)
    assert [check.name for check in checks if "generate" in check.name and not check.passed] == []
    for name, options in {"own": {}, "plain": {"plain_greedy": True}}.items():
        midsight.extract([(CASES[0].image, QUESTION)], model=model, out=tmp_path / name, max_new_tokens=4, **options)
        spec = json.loads((tmp_path / name / "run.json").read_text())
        assert spec["request"]["plain_greedy"] is bool(options)
        assert json.loads(spec["model"]["answer_settings"]) == {"repetition_penalty": 1.5}


@pytest.mark.parametrize(
    ("setting", "value"), [("num_beams", 4), ("stop_strings", ["x"]), ("guidance_scale", 1.5)], ids=str
)
def test_what_is_not_applied_is_named_in_a_note(folder, setting, value):
    edit_json(folder / "generation_config.json", lambda config: config.update({setting: value}))
    assert any(
        setting in note and "does not apply" in note for note in midsight.load(folder, device="cpu").loaded.notes
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [("repetition_penalty", -1.0), ("bad_words_ids", 3), ("suppress_tokens", ["x"]), ("no_repeat_ngram_size", "two")],
    ids=str,
)
def test_a_setting_that_is_not_usable_is_one_sentence(folder, setting, value):
    edit_json(folder / "generation_config.json", lambda config: config.update({setting: value}))
    said = said_by(midsight.load, folder, device="cpu")
    assert said is not None
    assert_sentence(said)
    assert "generation_config.json" in said


def test_without_the_file_answers_end_at_the_ids_of_the_config(folder):
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", lambda config: config["text_config"].update(eos_token_id=151645))
    model = midsight.load(folder, device="cpu")
    assert model.loaded.stop_ids == (151645,)
    assert any("no generation_config.json" in note for note in model.loaded.notes)

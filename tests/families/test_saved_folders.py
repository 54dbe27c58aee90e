"""Folders as several versions of transformers save them, and with fewer files: the same numbers, or one sentence."""

import json
import shutil

import pytest
import torch
from transformers import AutoProcessor

import midsight
from midsight.check.facts import read_facts
from midsight.check.full_forward import largest_error
from midsight.testing import write_published_phi4mm
from support.folders import assert_sentence, copy_folder, edit_json, replace_file, said_by
from support.pictures import CASES

pytestmark = pytest.mark.slow


def record_of(model):
    return model.extract(CASES[3].image, "What is it?", layers="all", max_new_tokens=3)


@pytest.fixture
def other(folder, tmp_path):
    return copy_folder(folder, tmp_path / "model")


def assert_same_numbers(folder, model):
    read_facts(folder)
    ours, theirs = record_of(midsight.load(folder, device="cpu")), record_of(model)
    assert largest_error(ours, theirs) == 0
    assert ours.answer_token_ids == theirs.answer_token_ids


def test_what_the_installed_transformers_saves(name, family, folder, model, tmp_path):
    """Model, generation config and processor, by save_pretrained."""
    saved = tmp_path / "saved"
    family.model.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(saved)
    AutoProcessor.from_pretrained(folder).save_pretrained(saved)
    if name == "phi4_multimodal":
        shutil.copytree(folder / "vision-lora", saved / "vision-lora")
    assert_same_numbers(saved, model)


def test_a_dtype_in_text_config_alone(name, other, monkeypatch):
    """Where there is no room for float32 the checkpoint's dtype is taken."""
    if name == "phi4_multimodal":
        pytest.skip("its config has no text_config")

    def move(config):
        config["text_config"]["dtype"] = config.pop("dtype")

    edit_json(other / "config.json", move)
    monkeypatch.setattr("midsight.checkpoints.loading.free_memory", lambda: 10)
    assert midsight.load(other, device="cpu", weights=False).loaded.dtype == torch.bfloat16


def test_no_architectures_and_no_generation_config(other, model):
    edit_json(other / "config.json", lambda config: config.pop("architectures"))
    (other / "generation_config.json").unlink()
    said = said_by(read_facts, other)
    assert said == said_by(midsight.load, other, device="cpu")
    if said is not None:  # the config has no stop ids
        assert_sentence(said)
        assert "eos_token_id" in said
        return
    loaded = midsight.load(other, device="cpu", weights=False).loaded
    assert loaded.family is model.loaded.family
    assert [note for note in loaded.notes if "generation_config.json" in note]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_a_vocabulary_in_two_files(other, model):
    """vocab.json and merges.txt, as Qwen publishes them beside its tokenizer.json."""
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]  # with the special tokens, because the small one has gaps between ids
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    (other / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (other / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (other / "tokenizer.json").unlink()

    def name_tokens(settings):
        flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        settings["tokenizer_class"] = "Qwen2Tokenizer"
        settings["added_tokens_decoder"] = {
            str(one["id"]): {"content": one["content"], **flags} for one in content["added_tokens"]
        }

    edit_json(other / "tokenizer_config.json", name_tokens)
    assert_same_numbers(other, model)
    fingerprint = midsight.load(other, device="cpu", weights=False).loaded.fingerprint
    replace_file(other / "merges.txt", (other / "merges.txt").read_bytes().rstrip().rpartition(b"\n")[0])
    assert midsight.load(other, device="cpu", weights=False).loaded.fingerprint != fingerprint


def rename_classes(folder, **names):
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():

            def rename(settings):
                for part in (settings, settings.get("image_processor", {})):
                    part.update({field: name for field, name in names.items() if field in part})

            edit_json(folder / file, rename)


def test_a_processor_class_of_another_name(other, model):
    """As of a fork: its parts are loaded."""
    rename_classes(other, processor_class="MyOwnProcessor")
    assert_same_numbers(other, model)


def test_an_image_processor_class_of_another_name_is_a_short_sentence(other):
    rename_classes(other, image_processor_type="MyOwnImageProcessor", processor_class="MyOwnProcessor")
    said = said_by(read_facts, other)
    assert said == said_by(midsight.load, other, device="cpu")
    if said is not None:
        assert_sentence(said)
        assert "MyOwnImageProcessor" in said
        assert len(said) < 300 + len(str(other))


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_quantised_weights_are_refused_with_the_lines_that_load_them(other, method):
    edit_json(other / "config.json", lambda config: config.update(quantization_config={"quant_method": method}))
    said = said_by(read_facts, other)
    assert said is not None
    assert said == said_by(midsight.load, other, device="cpu")
    assert_sentence(said)
    assert "model = Qwen2VLForConditionalGeneration.from_pretrained(FOLDER); " in said
    assert "processor = AutoProcessor.from_pretrained(FOLDER); model = midsight.wrap(model, processor)" in said


def test_quantised_weights_in_the_published_format_are_refused(tmp_path):
    folder = write_published_phi4mm(tmp_path / "model")
    edit_json(folder / "config.json", lambda config: config.update(quantization_config={"quant_method": "awq"}))
    said = said_by(read_facts, folder)
    assert said is not None
    assert said == said_by(midsight.load, folder, device="cpu")
    assert_sentence(said)
    assert "quantised" in said

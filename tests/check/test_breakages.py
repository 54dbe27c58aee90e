"""Each breakage made on purpose is noticed by the proof, and the row that fails names what is wrong."""

import copy
import dataclasses
from functools import cache

import pytest

from midsight import load
from midsight.check.family_checks import run_sections
from midsight.check.full_forward import full_forward
from midsight.check.lora import check_factors
from midsight.check.subject import make_subject
from midsight.checkpoints import lora
from midsight.checkpoints.adapter import find_model
from midsight.samples.sample import Sample
from support.breakages import BREAKAGES
from support.family_reference import FAMILIES
from support.folders import copy_folder, edit_json, let_layers_slide, let_tokenizer_add
from support.once import checkpoint_of_the_run
from support.pictures import picture

pytestmark = pytest.mark.slow

SAMPLES = [
    Sample("small", 0, (picture((64, 64), 0),), "What?"),
    Sample("wide", 1, (picture((120, 70), 1),), "Is there a red circle in the image?"),
]
LAYERS = {"phi4_multimodal": 2, "mllama": 3, "qwen2_vl": 6}


@pytest.fixture(scope="module")
def loaded(run_folder, tmp_path_factory):
    """Each small checkpoint, loaded once, after a first full forward that asked for hidden states."""
    changed = {
        "sliding": ("qwen2_vl", lambda folder: let_layers_slide(folder, window=24, full_layers=1)),
        "penalised": ("qwen2_vl", penalise),
        "mllama that adds its first token": (
            "mllama",
            lambda folder: let_tokenizer_add(folder, "<|begin_of_text|>"),
        ),
    }

    @cache
    def load_once(name):
        family, change = changed.get(name, (name, None))
        folder = checkpoint_of_the_run(run_folder, FAMILIES[family].write, layers=LAYERS[family])
        if change:
            folder = copy_folder(folder, tmp_path_factory.mktemp("changed") / "model")
            change(folder)
        model = load(folder, device="cpu")
        full_forward(model.loaded, subject_of(model).prepared[0])
        return model

    return load_once


def penalise(folder):
    edit_json(folder / "generation_config.json", lambda config: config.update(repetition_penalty=3.0))


def subject_of(model):
    return make_subject(model.loaded, SAMPLES, limit=1e-5, max_new_tokens=8, prompt_template="auto")


def failing(model, section):
    return [check.name for check in run_sections(subject_of(model), [section]) if not check.passed]


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_a_breakage_is_noticed(loaded, monkeypatch, breakage):
    model = loaded(breakage.on)
    if breakage.alone:
        model = dataclasses.replace(
            model, loaded=dataclasses.replace(model.loaded, hf_model=copy.deepcopy(model.loaded.hf_model))
        )
    model = breakage.damage(monkeypatch, model) or model
    found = failing(model, breakage.section)
    assert any(name.startswith(breakage.row) for name in found), found


@pytest.mark.parametrize("mode", ["merged", "unmerged"])
@pytest.mark.parametrize("scale", [True, False], ids=["with its scale", "without its scale"])
def test_a_lora_without_its_scale_is_noticed(run_folder, monkeypatch, mode, scale):
    folder = checkpoint_of_the_run(run_folder, FAMILIES["phi4_multimodal"].write, layers=2)
    merge, start = lora.merge, lora.LoraLinear.__init__

    def without(factors):
        return factors if scale else [(a, b, 1.0) for a, b, _ in factors]

    monkeypatch.setattr(lora, "merge", lambda weight, factors: merge(weight, without(factors)))
    monkeypatch.setattr(lora.LoraLinear, "__init__", lambda self, layer, factors: start(self, layer, without(factors)))
    model = load(folder, device="cpu", lora=mode)
    (found,) = check_factors(subject_of(model), find_model(folder))
    assert found.name == "layers with LoRA and W x + alpha / rank B A x from the files"
    assert found.passed == scale


@pytest.mark.parametrize(("on", "section"), sorted({(b.on, b.section) for b in BREAKAGES}))
def test_unbroken_the_section_passes(loaded, on, section):
    assert failing(loaded(on), section) == []


def test_at_least_forty():
    assert len({breakage.name for breakage in BREAKAGES}) >= 40

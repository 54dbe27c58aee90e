"""LoRA folders of unknown origin: one sentence, the same from `check` and from `load`, and no large memory."""

import os
import time

import pytest
import torch

import midsight
from midsight.check.facts import read_facts
from support.folders import assert_sentence, edit_json, edit_tensors, replace_file, said_by

pytestmark = pytest.mark.slow
CONFIG, WEIGHTS = "vision-lora/adapter_config.json", "vision-lora/adapter_model.safetensors"
NAME = "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight"


def both_refuse(folder, *names):
    began = time.process_time()
    said = said_by(read_facts, folder)
    assert time.process_time() - began < 30
    assert said is not None, f"{folder} loads"
    assert said == said_by(midsight.load, folder, device="cpu")
    assert_sentence(said)
    assert all(name in said for name in names), said


@pytest.mark.parametrize(
    "change",
    [
        {"r": [4]},
        {"r": True},
        {"r": 10**9},
        {"r": 10**400},
        {"r": None},
        {"lora_alpha": "8"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": {"a": 1}},
        {"rank_pattern": ["x"]},
        {"rank_pattern": {"qkv_proj": "4"}},
        {"alpha_pattern": {"qkv_proj": None}},
        {"target_modules": 7},
        {"target_modules": [["qkv_proj"]]},
        {"target_modules": {"a": 1}},
        {"target_modules": "("},
        {"init_lora_weights": ["gaussian"]},
        {"init_lora_weights": {"a": 1}},
        {"peft_type": ["LORA"]},
        {"layers_to_transform": "x", "target_modules": ["nothing"]},
        {"modules_to_save": 3, "r": 0},
    ],
    ids=lambda change: str(change)[:40],
)
def test_settings_of_the_wrong_type(native, change):
    edit_json(native / CONFIG, lambda config: config.update(change))
    both_refuse(native, "vision-lora")


def test_a_pattern_that_is_none_says_nothing(native):
    edit_json(native / CONFIG, lambda config: config.update(rank_pattern={"(": 4}, alpha_pattern={"(": 8.0}))
    assert said_by(read_facts, native) is None


@pytest.mark.parametrize(
    ("field", "pattern"),
    [
        ("rank_pattern", r"((.*)*)*x"),
        ("target_modules", r"((.*)*)*x"),
        ("rank_pattern", ".?" * 40 + "." * 30 + "x"),
        ("target_modules", r"(.|\w)" * 24 + "x"),
    ],
    ids=["repeats", "repeats of targets", "options", "choices"],
)
def test_a_pattern_that_never_ends(native, field, pattern, monkeypatch):
    """Each of its matches would take longer than anybody waits."""
    monkeypatch.setattr("midsight.checkpoints.patterns.MOST_SECONDS", 2.0)
    edit_json(native / CONFIG, lambda config: config.update({field: pattern if field[0] == "t" else {pattern: 4}}))
    both_refuse(native, "adapter_config.json", "takes too long")


def test_a_pattern_as_trainers_write_it(native):
    """It repeats a lot and is quick."""
    layers = (
        r"(?:.*?(?:vision|visual).*?(?:attn|mlp).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:\w+_proj))"
    )
    edit_json(native / CONFIG, lambda config: config.update(target_modules=layers))
    assert said_by(read_facts, native) is None


def renamed(tensors, name):
    tensors[name] = tensors.pop(NAME)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: tensors.update({NAME: torch.zeros(4, 32, 1)}),
        lambda tensors: tensors.update({NAME: torch.zeros(4)}),
        lambda tensors: tensors.update({NAME: torch.zeros(())}),
        lambda tensors: tensors.update({NAME: torch.zeros(0, 32)}),
        lambda tensors: tensors.update({NAME: torch.zeros(4, 32, dtype=torch.int8)}),
        lambda tensors: renamed(tensors, NAME.replace("layers.0", "layers.99")),
        lambda tensors: renamed(tensors, "x"),
        lambda tensors: renamed(tensors, ""),
        lambda tensors: renamed(tensors, NAME.replace("lora_A.weight", "lora_A.default.weight")),
        lambda tensors: renamed(tensors, "base_model.model.lora_A.weight"),
        lambda tensors: renamed(tensors, "../../" + NAME),
        lambda tensors: tensors.update({"base_model.model.model.norm.weight": torch.ones(7)}),
        lambda tensors: tensors.clear(),
    ],
    ids=[
        "three axes",
        "one axis",
        "no axis",
        "no rows",
        "integers",
        "another layer",
        "x",
        "empty",
        "a name inside",
        "no layer",
        "a path",
        "a norm of another size",
        "nothing",
    ],
)
def test_tensors_of_wrong_shapes_or_names(native, edit):
    edit_tensors(native / WEIGHTS, edit)
    both_refuse(native, "vision-lora")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_in_place_of_a_file(native, name):
    (native / "vision-lora" / name).unlink()
    os.mkfifo(native / "vision-lora" / name)
    both_refuse(native, name)


def test_a_link_to_a_device(native):
    (native / WEIGHTS).unlink()
    (native / WEIGHTS).symlink_to("/dev/zero")
    both_refuse(native, "adapter_model.safetensors")


def test_a_config_without_end(native):
    (native / CONFIG).unlink()
    with (native / CONFIG).open("wb") as file:
        file.truncate(10**11)
    both_refuse(native, "adapter_config.json")


def test_a_config_that_is_nested_too_deep(native):
    replace_file(native / CONFIG, b'{"r": ' + b"[" * 10**5 + b"]" * 10**5 + b"}")
    both_refuse(native, "adapter_config.json")

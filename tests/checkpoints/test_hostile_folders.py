"""Folders that try to take time or memory: one sentence at once, the same from `check` and from `load`."""

import os

import pytest

import midsight
from midsight.check.facts import read_facts
from midsight.testing import write_qwen2_vl
from support.folders import assert_sentence, copy_folder, edit_json, said_by


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_qwen2_vl(tmp_path_factory.mktemp("hostile") / "model")


@pytest.fixture
def other(plain, tmp_path):
    return copy_folder(plain, tmp_path / "model")


def both_say(folder, *names):
    said = said_by(read_facts, folder)
    assert said is not None
    assert said == said_by(midsight.load, folder, device="cpu")
    assert_sentence(said)
    assert all(name in said for name in names)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("text_config", "num_hidden_layers", 10**9),
        ("vision_config", "depth", 10**9),
        ("text_config", "hidden_size", 10**12),
        ("vision_config", "patch_size", 0),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "vocab_size", 2 * 10**9),
    ],
)
def test_a_size_that_no_model_of_these_tensors_has(other, part, field, value):
    edit_json(other / "config.json", lambda config: config[part].update({field: value}))
    both_say(other)


def test_architectures_that_are_no_names(other):
    edit_json(other / "config.json", lambda config: config.update(architectures=[["x"]]))
    both_say(other, "architecture")


@pytest.mark.parametrize("name", ["merges.txt", "chat_template.json", "added_tokens.json"])
def test_a_pipe_or_a_device_among_the_files(other, name):
    os.mkfifo(other / name)
    both_say(other, name, "not a regular file")
    (other / name).unlink()
    (other / name).symlink_to("/dev/zero")
    both_say(other, name, "not a regular file")


def test_a_text_without_end(other):
    with (other / "special_tokens_map.json").open("wb") as file:
        file.truncate(10**11)
    both_say(other, "special_tokens_map.json", "100000 MB")

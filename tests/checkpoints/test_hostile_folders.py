"""Folders that try to take time or memory: one sentence at once, the same from `check` and from `load`."""

import json
import os

import pytest

import midsight
from midsight.check.facts import read_facts
from midsight.testing import write_qwen2_vl
from midsight.testing.llava import write_llava_next
from support.folders import assert_sentence, copy_folder, edit_json, replace_file, said_by
from support.once import checkpoint_of_the_run


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
        ("text_config", "head_dim", 2**31),
        ("text_config", "num_labels", 10**9),
        ("vision_config", "image_size", 2**31 - 1),
    ],
)
def test_a_size_that_no_model_of_these_tensors_has(other, part, field, value):
    edit_json(other / "config.json", lambda config: config[part].update({field: value}))
    both_say(other)


def test_architectures_that_are_no_names(other):
    edit_json(other / "config.json", lambda config: config.update(architectures=[["x"]]))
    both_say(other, "architecture")


@pytest.mark.parametrize("value", [[[1]], [], "x", ["x", None]], ids=str)
def test_a_length_that_is_not_a_number(other, value):
    edit_json(other / "tokenizer_config.json", lambda config: config.update(model_max_length=value))
    both_say(other, "tokenizer_config.json", "model_max_length")


@pytest.mark.parametrize("value", [10**400, [10**400]], ids=["number", "list"])
def test_a_stop_id_of_400_digits(other, value):
    edit_json(other / "generation_config.json", lambda config: config.update(eos_token_id=value))
    both_say(other, "generation_config.json", "eos_token_id")


def test_an_index_with_a_name_that_no_file_can_have(other):
    index = {"weight_map": {"model.norm.weight": "a" * 10**6}}
    (other / "model.safetensors").unlink()
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    both_say(other, "index")


@pytest.mark.slow
@pytest.mark.parametrize("value", [1, [1, 1, 1], ["x", 1]], ids=str)
def test_grids_of_the_wrong_type(run_folder, tmp_path, value):
    folder = copy_folder(checkpoint_of_the_run(run_folder, write_llava_next), tmp_path / "model")
    edit_json(folder / "config.json", lambda config: config["image_grid_pinpoints"].append(value))
    both_say(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda folder: replace_file(folder / "config.json", b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}"),
        lambda folder: replace_file(
            folder / "config.json", ("{" + "".join(f'"k{i}": 0, ' for i in range(200_000)) + '"k199999": 1}').encode()
        ),
        lambda folder: edit_json(
            folder / "config.json", lambda config: config.update(architectures=["x\n\x1b[2J" * 9999])
        ),
        lambda folder: edit_json(folder / "config.json", lambda config: config.update({"x" * 10**5: 10**400})),
        lambda folder: edit_json(folder / "config.json", lambda config: config.update(note="x" * 5 * 10**6)),
        lambda folder: replace_file(
            folder / "model.safetensors", (17 * 2**20).to_bytes(8, "little") + b" " * 17 * 2**20
        ),
    ],
    ids=["deep", "twice at the end", "architectures", "a long name", "large settings", "a large header"],
)
def test_what_is_long_or_deep(other, edit):
    """And no control character reaches a terminal."""
    edit(other)
    both_say(other)


@pytest.mark.parametrize(
    "name", ["merges.txt", "chat_template.json", "added_tokens.json", "additional_chat_templates/tools.jinja"]
)
def test_a_pipe_or_a_device_among_the_files(other, name):
    (other / name).parent.mkdir(exist_ok=True)
    os.mkfifo(other / name)
    both_say(other, name, "not a regular file")
    (other / name).unlink()
    (other / name).symlink_to("/dev/zero")
    both_say(other, name, "not a regular file")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_an_extraction_opens_no_pipe_before_the_folder_is_looked_at(other, name, tmp_path):
    (other / name).unlink()
    os.mkfifo(other / name)
    given = {"model": other, "out": tmp_path / "run", "prompt": "{question} Be brief."}
    said = said_by(midsight.extract, [("a.png", "What?")], **given)
    assert said is not None
    assert f"{other / name} is not a regular file" in said


@pytest.mark.parametrize("name", ["special_tokens_map.json", "additional_chat_templates/tools.jinja"])
def test_a_text_without_end(other, name):
    fill(other / name)
    both_say(other, name, "100000 MB")


@pytest.mark.parametrize("name", ["train.jsonl", "data.tar", "optimizer.ckpt", "global_step8/merges.txt"])
def test_a_large_file_that_is_not_read_is_no_obstacle(other, name):
    fill(other / name)
    assert said_by(read_facts, other) is None


def fill(path):
    """A file of 100 GB that takes no room."""
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(10**11)

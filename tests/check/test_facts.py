"""What `midsight check` finds out about a folder without reading its weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from midsight.check.facts import read_facts
from midsight.check.terminal import describe, describe_size
from midsight.cli import app
from support.folders import copy_folder, edit_tensors, load_all, needs_facts, write_published, write_published_size


@pytest.fixture(scope="module")
def native(checkpoint):
    return checkpoint


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("check") / "published", checkpoint)


def check(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_formats_of_one_model_have_the_same_facts(native, published):
    ours, theirs = read_facts(native), read_facts(published)
    assert (ours.format, theirs.format) == ("transformers", "published phi4mm")
    assert theirs.parameters == {**ours.parameters, "speech LoRA": theirs.parameters["speech LoRA"]}
    assert (ours.left_out, set(theirs.left_out)) == (("audio",), {"audio", "speech LoRA"})
    for name in ("layers", "default_layers", "hidden_size", "vision_width", "memory_bytes", "example_token_ids"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.stop_ids == theirs.stop_ids == (199999, 200020)
    assert ours.longrope_threshold_tokens == 4096
    assert ours.image_token_id == 200010
    assert ours.revision is None


def test_parameters_are_those_that_are_stored(native, published):
    lora = load_file(native / "vision-lora" / "adapter_model.safetensors")
    assert sum(read_facts(native).parameters.values()) == sum(
        t.numel() for t in (*load_all(native).values(), *lora.values())
    )
    assert sum(read_facts(published).parameters.values()) == sum(t.numel() for t in load_all(published).values())


def test_memory_is_that_of_the_parts_that_are_loaded(native):
    facts = read_facts(native)
    parts = {**facts.parameters}
    lora, audio = parts.pop("vision LoRA"), parts.pop("audio")
    assert audio > 0
    assert facts.memory_bytes["float32"] == 4 * sum(parts.values())
    assert facts.memory_bytes["bfloat16"] == facts.memory_bytes["float16"] == 2 * (sum(parts.values()) + lora)


def test_where_the_lora_lies_is_said(native, published, tmp_path):
    assert read_facts(native).lora == read_facts(published).lora == "beside the weights"
    bare = copy_folder(native, tmp_path / "bare")
    shutil.rmtree(bare / "vision-lora")
    assert "merged into the weights, or missing" in read_facts(bare).lora


def test_a_size_is_compared_with_every_device():
    assert describe_size(5 * 10**9, {"cpu": 6 * 10**9}) == "5.0 GB, more than is free here"  # room is left
    assert describe_size(5 * 10**9, {"cpu": 8 * 10**9, "cuda:0": 10**9}) == "5.0 GB, fits on cpu"
    assert describe_size(5 * 10**9, {"cpu": 10**9}) == "5.0 GB, more than is free here"


def test_the_command_prints_the_facts_and_says_ok(native):
    done = check(native)
    assert done.exit_code == 0, done.output
    facts = read_facts(native)
    flat = "".join(done.output.split())
    for value in describe(facts).values():
        if "free" not in value and " on " not in value:  # what is free changes from call to call
            assert "".join(value.split()) in flat
    assert "OK" in done.output.splitlines()[-1]


def test_plain_data_on_request(published):
    done = check(published, "--json")
    assert done.exit_code == 0
    told = json.loads(done.output)
    assert told["model"]["format"] == "published phi4mm"
    assert told["model"]["example_token_ids"][:2] == [200021, 200010]
    assert told["model"]["example_token_ids"][-2:] == [200020, 200019]
    assert told["checks"] == []


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "missing tensor, the first is model.norm.weight"),
        (
            lambda tensors: tensors.update(extra=tensors["model.norm.weight"].clone()),
            "extra tensor, the first is extra",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"][:-1].clone()}),
            "misshapen tensor, the first is model.norm.weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_any_weight_is_read(native, tmp_path, edit, sentence):
    damaged = copy_folder(native, tmp_path / "damaged")
    edit_tensors(damaged / "model.safetensors", edit)
    done = check(damaged)
    assert done.exit_code == 2
    assert f"1 {sentence}" in done.output.replace("\n", " ")
    assert "OK" not in done.output


def test_a_lora_that_does_not_fit_is_named(native, tmp_path):
    damaged = copy_folder(native, tmp_path / "damaged")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    edit_tensors(damaged / "vision-lora" / "adapter_model.safetensors", lambda tensors: tensors.pop(name))
    done = check(damaged)
    assert done.exit_code == 2
    assert "layers.1.mlp.down_proj.lora_A" in done.output


@pytest.mark.slow
@needs_facts
def test_the_published_size_is_checked_from_headers_alone(tmp_path):
    """Eleven gigabytes of sparse files: reading the weights would take as much memory."""
    folder = write_published_size(tmp_path / "published")
    program = """
import sys
from faults.usage import peak_bytes
from midsight.cli import app
app(["check", sys.argv[1], "--json"], standalone_mode=False)
print("PEAK", peak_bytes())
"""
    command, tests = [sys.executable, "-c", program, str(folder)], str(Path(__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": tests})
    assert done.returncode == 0, done.stderr
    printed, _, peak_bytes = done.stdout.rpartition("PEAK")
    assert int(peak_bytes) < 3_000_000_000
    facts = json.loads(printed)["model"]
    assert sum(facts["parameters"].values()) == 5_574_460_384
    assert (facts["layers"], facts["hidden_size"], facts["vision_width"]) == (32, 3072, 1152)
    assert facts["stop_ids"] == [199999, 200020]

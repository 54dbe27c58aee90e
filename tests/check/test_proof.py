"""`midsight check --run`: the proof on the user's machine, and that it can fail."""

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from folders import copy_folder, edit_tensors, write_published
from midsight import load
from midsight.check import proof
from midsight.cli import app
from midsight.samples.sample import Sample
from midsight.testing.checks import check_adapter
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from pictures import picture

PROVED = (
    "vision_token at every layer and the full forward",
    "query_token at every layer and the full forward",
    "vision features and transformers' tower",
    "one batch, padded left, and each sample alone",
    "one batch in reverse order, padded right, and each alone",
    "a question on the image's prefix and the full forward",
    "sdpa and eager attention",
    "answers that differ from generate",
    "LoRA off and on",
)


def check_run(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments), "--run", "--device", "cpu"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_phi4_multimodal(tmp_path_factory.mktemp("proof") / "model", layers=2, vision_heads=16)


@pytest.fixture
def two_small_images(monkeypatch):
    samples = tuple(Sample(str(i), i, (picture((64, 64 + i), i),), "What is it? " * (i + 1)) for i in range(2))
    monkeypatch.setattr(proof, "shipped_samples", lambda: samples)


def test_shipped_images_fill_their_crops_and_do_not(model):
    from midsight.extraction.prepare import PreparedSample, prepare
    from midsight.extraction.request import Request, resolve

    prepared = prepare(model.loaded, resolve(Request(), model.loaded), proof.shipped_samples())
    images = [image for item in prepared if isinstance(item, PreparedSample) for image in item.images]
    assert [bool(image.patch_mask.all()) for image in images] == [False, True, False]
    assert len({image.grid for image in images}) > 1


@pytest.mark.slow
def test_every_limit_is_kept_on_the_published_layout(small, tmp_path):
    done = check_run(write_published(tmp_path / "published", small), "--json")
    assert done.exit_code == 0, done.output
    checks = {check["name"]: check for check in json.loads(done.output)["checks"]}
    assert all(check["passed"] for check in checks.values())
    assert set(PROVED) <= set(checks)
    assert checks["LoRA off and on"]["figure"] > 0.01
    assert checks["sdpa and eager attention"]["figure"] > 0


@pytest.mark.slow
def test_sixteen_bits_keep_their_limits_and_the_lora_beside_the_weights(small):
    checks = {check.name: check for check in proof.prove(small, dtype="bfloat16", device="cpu", lora="unmerged")}
    assert [check for check in checks.values() if not check.passed] == []
    assert checks["LoRA off and on"].must_differ


def test_a_missed_limit_exits_with_1_and_is_shown(small, two_small_images, monkeypatch):
    monkeypatch.setattr(proof, "LIMITS", {torch.float32: 1e-12})
    done = check_run(small, "--lora", "off")
    assert done.exit_code == 1
    assert "MISSED" in done.output
    assert "limits missed" in done.output


@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_a_lora_without_effect_is_caught(small, two_small_images, tmp_path, lora):
    idle = copy_folder(small, tmp_path / "idle")
    edit_tensors(
        idle / "vision-lora" / "adapter_model.safetensors",
        lambda tensors: [tensor.zero_() for name, tensor in tensors.items() if "lora_B" in name],
    )
    missed = {check.name for check in proof.prove(idle, device="cpu", lora=lora) if not check.passed}
    assert missed == {"LoRA off and on"}


def test_a_sample_that_fails_is_one_sentence(small, two_small_images, monkeypatch):
    samples = (Sample("blank", 0, (picture((2000, 1), 0),), "What?"),)
    monkeypatch.setattr(proof, "shipped_samples", lambda: samples)
    done = check_run(small)
    assert done.exit_code == 2
    assert "blank" in done.output
    assert "Traceback" not in done.output


@pytest.fixture(scope="module")
def bordered(tmp_path_factory):
    """The image's prefix lies within the border, the whole prompt beyond it: they use other rotary factors."""
    folder = tmp_path_factory.mktemp("border") / "model"
    return write_phi4_multimodal(folder, layers=2, original_max_position_embeddings=550)


BEYOND_THE_BORDER = [Sample(str(i), i, (picture((64, 64), i),), "What is it? " * 4) for i in range(2)]
PREFIX = "a question on the image's prefix and the full forward"


def test_a_prefix_of_the_other_longrope_regime_is_caught(bordered):
    model = load(bordered, device="cpu")
    adapter = dataclasses.replace(model.loaded.adapter, longrope_border=lambda config: None)
    careless = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, adapter=adapter))
    (found,) = [check for check in check_adapter(careless, BEYOND_THE_BORDER) if check.name == PREFIX]
    assert not found.passed


def test_a_prefix_of_the_other_longrope_regime_is_not_measured(bordered):
    checks = check_adapter(load(bordered, device="cpu"), BEYOND_THE_BORDER)
    assert PREFIX not in {check.name for check in checks}
    assert all(check.passed for check in checks)

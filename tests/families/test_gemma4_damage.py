"""The tests of Gemma 4 fail for each mistake that its masks, shared keys and layers' own embeddings invite."""

import dataclasses
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from midsight import load
from midsight.families.family import logits_of_head
from midsight.families.inputs import DecoderInputs, image_blocks
from midsight.testing import write_gemma4
from support import damages
from support.damages import DAMAGED_CASES, compare_cases, failing
from support.family_reference import FAMILIES, FamilyReference
from support.folders import copy_folder

pytestmark = pytest.mark.parametrize("name", ["gemma4"], indirect=True)


@pytest.fixture
def declaring(model):
    """The model with some of its family's declarations replaced."""
    return partial(damages.declaring, model)


@pytest.fixture
def is_off_by(reference):
    """A vector of one of the cases has to be wrong."""

    def run(model):
        with pytest.raises(AssertionError, match="is off by"):
            compare_cases(model, reference)

    return run


def test_image_tokens_that_read_backwards_only(is_off_by, declaring):
    is_off_by(declaring(blocks=lambda _, ids, __: torch.full_like(ids, -1)))


def test_image_tokens_that_read_ahead_in_every_layer(is_off_by, declaring):
    """As in Gemma 3, and without a window between them."""
    is_off_by(declaring(only_sliding_layers_read_ahead=False))


def test_no_window(is_off_by, model):
    """It is shorter than an image, and holds between its tokens too."""
    is_off_by(dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, sliding_window=10**6)))


def test_image_tokens_with_embeddings_of_their_own_in_the_layers(is_off_by, declaring, model):
    declared = model.loaded.family.decoder.inputs

    def with_own(hf_model, token_ids, layouts, images):
        inputs = declared(hf_model, token_ids, layouts, images)
        own = hf_model.model.language_model.get_per_layer_inputs(token_ids)
        return DecoderInputs({**inputs.prefill, "per_layer_inputs": own}, inputs.later)

    is_off_by(declaring(inputs=with_own))


def test_features_that_are_not_standardised(is_off_by, model, monkeypatch):
    monkeypatch.setattr(model.loaded.config.vision_config, "standardize", False)
    is_off_by(model)


def test_padding_counted_in_the_mean(declaring):
    everything = declaring(useful_patches=lambda image: torch.ones(len(image.pixel_values), dtype=torch.bool))
    assert failing(everything, "useful patches") == {"patches in the mean that never reach the decoder"}


def test_logits_that_are_not_capped(declaring):
    assert "log-probabilities of answers and those of generate's logits" in failing(
        declaring(adjust_logits=logits_of_head), "answers"
    )


class TestOtherSizes:
    """E2B and E4B read backwards only; 26B-A4B has experts, and neither shared keys nor embeddings in its layers."""

    @pytest.fixture(params=[{"images_read_ahead": False}, {"experts": 4}], ids=["as E4B", "as 26B-A4B"])
    def other(self, name, request, tmp_path):
        folder = write_gemma4(tmp_path / "model", **request.param)
        return load(folder, device="cpu"), FamilyReference(folder, FAMILIES[name])

    def test_their_numbers_are_transformers(self, other):
        compare_cases(*other)

    def test_the_other_mask_is_off(self, other):
        model, reference = other
        reads = model.loaded.config.get_text_config().use_bidirectional_attention == "vision"
        blocks = (lambda _, ids, __: torch.full_like(ids, -1)) if reads else image_blocks
        with pytest.raises(AssertionError, match="is off by"):
            compare_cases(damages.declaring(model, blocks=blocks), reference)


def test_keys_stored_for_layers_that_share_them_are_left_out(folder, model, tmp_path):
    copied = copy_folder(folder, tmp_path / "model")
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    unused = {f"model.language_model.layers.4.self_attn.{part}_proj.weight": torch.zeros(16, 32) for part in "kv"}
    save_file({**weights, **unused}, copied / "model.safetensors", {"format": "pt"})
    case = DAMAGED_CASES[0]
    one, other = (
        each.extract(case.image, case.question, answers=False) for each in (load(copied, device="cpu"), model)
    )
    assert {name: vector.tolist() for name, vector in one.vectors.items()} == {
        name: vector.tolist() for name, vector in other.vectors.items()
    }


def test_the_audio_tower_is_loaded_on_request_only(folder, model):
    with_audio = load(folder, device="cpu", audio=True)
    parts = [sum(p.numel() for p in one.loaded.hf_model.model.audio_tower.parameters()) for one in (model, with_audio)]
    assert parts[0] == 0 < parts[1]

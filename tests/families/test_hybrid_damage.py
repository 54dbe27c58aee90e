"""The tests of DeepSeek-VL's 7B model fail for each mistake that two encoders invite."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from midsight import load
from midsight.check.facts import read_facts
from midsight.families import deepseek_vl_hybrid
from support.damages import compare_cases, declaring, failing
from support.folders import assert_sentence, copy_folder, edit_json, said_by
from support.parity import rgb
from support.pictures import CASES

pytestmark = pytest.mark.parametrize("name", ["deepseek_vl_hybrid"], indirect=True)

PICTURE = rgb(CASES[0].image)


@pytest.fixture
def is_off_by(reference):
    """A vector of one of the cases has to be wrong."""

    def run(model):
        with pytest.raises(AssertionError, match="is off by"):
            compare_cases(model, reference)

    return run


def test_the_features_of_the_encoders_exchanged(is_off_by, model):
    """Both are equally wide, here and in the published model."""
    original = model.loaded.family.vision.image_embeddings
    is_off_by(declaring(model, image_embeddings=lambda m, features, i: original(m, features.roll(16, dims=-1), i)))


def test_the_large_square_made_of_the_small_one(is_off_by, model):
    original = model.loaded.family.vision.image_inputs

    def enlarged(*args):
        image = original(*args)
        return replace(image, larger_pixels=interpolate(image.pixel_values, scale_factor=2, mode="bicubic"))

    other = declaring(model, image_inputs=enlarged)
    is_off_by(other)
    assert "pixels, resized by transformers, and the processor's own" in failing(other, "pixels")


def test_the_large_encoder_without_its_earlier_layer(is_off_by, model):
    original = model.loaded.family.vision.encode

    def without(hf_model, images):
        weight = hf_model.model.high_res_vision_alpha.data
        kept = weight.clone()
        weight.zero_()
        features = [*original(hf_model, images)]
        weight.copy_(kept)
        return features

    is_off_by(declaring(model, encode=without))


def test_the_patches_of_the_large_square_turned(is_off_by, model):
    original = model.loaded.family.vision.encode

    def turned(hf_model, images):
        for features in original(hf_model, images):
            large, small = features.split(16, dim=-1)
            yield torch.cat([large.view(1, 4, 4, 16).transpose(1, 2).reshape(1, 16, 16), small], dim=-1)

    is_off_by(declaring(model, encode=turned))


def test_encoders_on_two_devices(model):
    """As accelerate may place them; the features of both are joined where SigLIP's are."""
    small, large = torch.zeros((1, 16, 16), device="meta"), torch.zeros(1, 16, 16)
    images = [deepseek_vl_hybrid.image_inputs(model.loaded.processor, PICTURE, "pil", model.loaded.config)]
    assert deepseek_vl_hybrid.joined(small, large, images)[0].device == small.device


def test_the_parameters_of_both_encoders_count_as_the_encoder(folder, model):
    hf_model = model.loaded.hf_model.model
    encoders = [hf_model.vision_model, hf_model.high_res_vision_model]
    assert read_facts(folder).parameters["vision encoder"] == sum(
        parameter.numel() for encoder in encoders for parameter in encoder.parameters()
    )


def test_large_squares_that_do_not_fit_are_refused(folder, tmp_path):
    other = copy_folder(folder, tmp_path / "model")
    edit_json(
        other / "processor_config.json",
        lambda processor: processor["image_processor"].update(high_res_size={"height": 96, "width": 96}),
    )
    said = said_by(load, other, device="cpu")
    assert said is not None
    assert_sentence(said)
    assert "makes large squares of 96 px, and config.json has 128" in said

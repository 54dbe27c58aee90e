import dataclasses

import pytest
import torch

from midsight import load
from midsight.check import family_checks
from midsight.check.check import Check
from midsight.check.family_checks import check_family, check_prefix, check_taps
from midsight.check.full_forward import full_forward
from midsight.extraction.extract_call import extract_samples
from midsight.extraction.prepare import prepare
from midsight.extraction.request import Request, resolve
from midsight.families.phi4_multimodal import FAMILY
from midsight.prompts.token_layout import TokenLayout
from midsight.samples.sample import Failure
from midsight.taps.tap import POSITIONS
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.once import checkpoint_of_the_run
from support.parity import extract_records, samples_of
from support.pictures import CASES

SAMPLES = samples_of([CASES[0], CASES[1], CASES[3]])
FEW = samples_of([CASES[0], CASES[1]])
"""One image leaves part of its crop empty, the other fills it."""


@pytest.fixture(scope="module")
def small(run_folder):
    """A checkpoint of three decoder layers, for what has nothing to do with their number."""
    return checkpoint_of_the_run(run_folder, write_phi4_multimodal, layers=3)


def failing(checkpoint, group, **declared):
    """Names of the checks that fail for a family with some declarations of a group replaced."""
    model = load(checkpoint, device="cpu")
    family = dataclasses.replace(FAMILY, **{group: dataclasses.replace(getattr(FAMILY, group), **declared)})
    model = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, family=family))
    return {check.name for check in check_family(model, FEW, max_new_tokens=3) if not check.passed}


def test_phi4_multimodal_keeps_what_it_declares(checkpoint):
    checks = check_family(load(checkpoint, device="cpu"), SAMPLES)
    assert [check for check in checks if not check.passed] == []
    assert len(checks) >= 10


def test_a_wrong_feature_layer_is_caught(small):
    def one_layer_less(hf_model, images):
        tower = hf_model.model.embed_tokens_extend.image_embed.img_processor
        layer = tower.config.feature_layer
        tower.config.feature_layer = layer - 1
        try:
            return FAMILY.vision.encode(hf_model, images)
        finally:
            tower.config.feature_layer = layer

    found = failing(small, "vision", encode=one_layer_less)
    assert "vision features and transformers' tower" in found
    assert "vision_token at every layer and the full forward" in found


@pytest.mark.parametrize(
    ("useful", "names"),
    [
        (
            lambda image: torch.ones_like(image.patch_mask),
            {"useful patches that the decoder never sees", "vision features and transformers' tower"},
        ),
        (
            lambda image: image.patch_mask & global_crop(image),
            {
                "share of the patches it sees that are not useful",
                "patches of filled crops that it sees and are not useful",
            },
        ),
    ],
)
def test_wrong_patches_are_caught(small, useful, names):
    assert failing(small, "vision", useful_patches=lambda image: useful(image).flatten(1)) == names


def global_crop(image):
    return (torch.arange(len(image.patch_mask)) == 0)[:, None, None]


def test_a_prefix_declared_unshareable_is_caught(small):
    assert failing(small, "decoder", shares_image_prefix=False) == {"image states under another question"}


def test_crops_in_the_wrong_order_are_caught(small):
    def turned(hf_model, features, image):
        return FAMILY.vision.image_embeddings(hf_model, features, image).flip(0)

    assert "vision_token at every layer and the full forward" in failing(small, "vision", image_embeddings=turned)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_vision_token_off_by_one_is_caught(small, monkeypatch, shift):
    """The token just behind the image is of another kind, so its kind must not decide where the image is."""
    model = load(small, device="cpu").loaded
    request = resolve(Request(layers="all", answers=False, positions=POSITIONS), model)
    prepared = [item for item in prepare(model, request, FEW) if not isinstance(item, Failure)]
    forwards = [full_forward(model, item) for item in prepared]
    original = vars(TokenLayout)["vision_token"].fget
    monkeypatch.setattr(TokenLayout, "vision_token", property(lambda self: original(self) + shift))
    records = [item for item in extract_samples(model, request, FEW) if not isinstance(item, Failure)]
    found = check_taps(model, request, records, prepared, forwards, 1e-5)
    assert [check.name.partition(" ")[0] for check in found if not check.passed] == ["vision_token"]


def test_the_prefix_check_extracts_each_sample_once(small, monkeypatch):
    model = load(small, device="cpu").loaded
    request = resolve(Request(layers="all", answers=False), model)
    alone = extract_records(load(small, device="cpu"), request, FEW)
    calls = []
    monkeypatch.setattr(family_checks, "extract_samples", lambda *args: calls.append(args) or extract_samples(*args))
    assert check_prefix(model, request, FEW, alone, 1e-5).passed
    assert len(calls) == len(FEW)


def test_a_fix_left_out_is_caught(small):
    model = load(small, device="cpu")
    for layer in model.loaded.hf_model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
        layer.self_attn.is_causal = True
    found = {check.name for check in check_family(model, FEW, max_new_tokens=3) if not check.passed}
    assert "known bugs left to fix" in found


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
@pytest.mark.parametrize("must_differ", [True, False])
def test_a_figure_that_is_not_finite_never_passes(figure, must_differ):
    assert not Check("any", figure, 1.0, must_differ).passed

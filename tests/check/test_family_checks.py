import dataclasses

import pytest
import torch

from midsight import load
from midsight.check import states
from midsight.check.check import Check
from midsight.check.family_checks import check_family
from midsight.check.states import check_prefix, check_taps
from midsight.check.subject import make_subject
from midsight.extraction.extract_call import extract_samples
from midsight.families.phi4_multimodal import FAMILY
from midsight.prompts.token_layout import TokenLayout
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.once import checkpoint_of_the_run
from support.parity import samples_of
from support.pictures import CASES

SAMPLES = samples_of([CASES[0], CASES[1], CASES[3]])
FEW = samples_of([CASES[0], CASES[1]])
"""One image leaves part of its crop empty, the other fills it."""


@pytest.fixture(scope="module")
def small(run_folder):
    """A checkpoint of three decoder layers, for what has nothing to do with their number."""
    return checkpoint_of_the_run(run_folder, write_phi4_multimodal, layers=3)


SECTIONS = ("states", "vision features", "useful patches", "shared prefix")


def failing(checkpoint, group, **declared):
    """Names of the checks that fail for a family with some declarations of a group replaced."""
    model = load(checkpoint, device="cpu")
    family = dataclasses.replace(FAMILY, **{group: dataclasses.replace(getattr(FAMILY, group), **declared)})
    model = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, family=family))
    return {check.name for check in check_family(model, FEW, max_new_tokens=3, sections=SECTIONS) if not check.passed}


@pytest.mark.slow
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
    assert "vision_token at every layer and transformers' full forward" in found


@pytest.mark.parametrize(
    ("useful", "names"),
    [
        (
            lambda image: torch.ones_like(image.patch_mask),
            {"patches in the mean that never reach the decoder", "vision features and transformers' tower"},
        ),
        (
            lambda image: image.patch_mask & global_crop(image),
            {
                "share of the patches that reach the decoder and are not in the mean",
                "patches of filled crops that reach the decoder and are not in the mean",
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

    assert "vision_token at every layer and transformers' full forward" in failing(
        small, "vision", image_embeddings=turned
    )


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_vision_token_off_by_one_is_caught(small, monkeypatch, shift):
    """The token just behind the image is of another kind, so its kind must not decide where the image is."""
    subject = make_subject(load(small, device="cpu").loaded, FEW, limit=1e-5, max_new_tokens=1, prompt_template="auto")
    assert subject.forwards
    original = vars(TokenLayout)["vision_token"].fget
    monkeypatch.setattr(TokenLayout, "vision_token", property(lambda self: original(self) + shift))
    found = check_taps(subject)
    assert [check.name.partition(" ")[0] for check in found if not check.passed] == ["vision_token"]


def test_the_prefix_check_extracts_each_sample_once(small, monkeypatch):
    subject = make_subject(load(small, device="cpu").loaded, FEW, limit=1e-5, max_new_tokens=1, prompt_template="auto")
    assert subject.alone
    calls = []
    monkeypatch.setattr(states, "extract_samples", lambda *args: calls.append(args) or extract_samples(*args))
    assert all(check.passed for check in check_prefix(subject))
    assert len(calls) == len(FEW)


def test_a_fix_left_out_is_caught(small):
    model = load(small, device="cpu")
    for layer in model.loaded.hf_model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
        layer.self_attn.is_causal = True
    checks = check_family(model, FEW, max_new_tokens=3, sections=["declarations"])
    assert "known bugs left to fix" in {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
@pytest.mark.parametrize("must_differ", [True, False])
def test_a_figure_that_is_not_finite_never_passes(figure, must_differ):
    assert not Check("any", figure, 1.0, must_differ).passed


def test_a_section_that_raises_is_a_check_that_fails(small, monkeypatch):
    def broken(*_args, **_options):
        raise ValueError("no such mask")

    monkeypatch.setattr(states, "continue_prefill", broken)
    checks = check_family(load(small, device="cpu"), FEW, max_new_tokens=1, sections=["states", "continued prefix"])
    (failed,) = [check for check in checks if not check.passed]
    assert (failed.name, failed.error) == ("continued prefix: could not be compared", "ValueError: no such mask")

import dataclasses

import pytest
import torch

from midsight import load
from midsight.models.phi4_multimodal import ADAPTER
from midsight.testing.checks import Check, check_adapter
from parity import samples_of
from pictures import CASES

SAMPLES = samples_of([CASES[0], CASES[1], CASES[3]])


def failing(checkpoint, **declared):
    """Names of the checks that fail for an adapter with some declarations replaced."""
    model = load(checkpoint, device="cpu")
    adapter = dataclasses.replace(ADAPTER, **declared)
    model = dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, adapter=adapter))
    return {check.name for check in check_adapter(model, SAMPLES) if not check.passed}


def test_phi4_multimodal_keeps_what_it_declares(checkpoint):
    checks = check_adapter(load(checkpoint, device="cpu"), SAMPLES)
    assert [check for check in checks if not check.passed] == []
    assert len(checks) >= 10


def test_a_wrong_feature_layer_is_caught(checkpoint):
    def one_layer_less(hf_model, pixel_values, patch_mask):
        tower = hf_model.model.embed_tokens_extend.image_embed.img_processor
        layer = tower.config.feature_layer
        tower.config.feature_layer = layer - 1
        try:
            return ADAPTER.encode_crops(hf_model, pixel_values, patch_mask)
        finally:
            tower.config.feature_layer = layer

    found = failing(checkpoint, encode_crops=one_layer_less)
    assert "vision features and transformers' tower" in found
    assert "vision_token at every layer and the full forward" in found


@pytest.mark.parametrize(
    ("useful", "name"),
    [
        (lambda image: torch.ones_like(image.patch_mask), "useful patches that the decoder never sees"),
        (lambda image: image.patch_mask & global_crop(image), "share of the patches it sees that are not useful"),
    ],
)
def test_wrong_patches_are_caught(checkpoint, useful, name):
    assert failing(checkpoint, useful_patches=lambda image: useful(image).flatten(1)) == {name}


def global_crop(image):
    return (torch.arange(len(image.patch_mask)) == 0)[:, None, None]


def test_a_prefix_declared_unshareable_is_caught(checkpoint):
    assert failing(checkpoint, shares_image_prefix=False) == {"image states under another question"}


def test_crops_in_the_wrong_order_are_caught(checkpoint):
    def turned(hf_model, features, image):
        return ADAPTER.image_embeddings(hf_model, features, image).flip(0)

    assert "vision_token at every layer and the full forward" in failing(checkpoint, image_embeddings=turned)


def test_a_mend_left_out_is_caught(checkpoint):
    model = load(checkpoint, device="cpu")
    for layer in model.loaded.hf_model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
        layer.self_attn.is_causal = True
    found = {check.name for check in check_adapter(model, SAMPLES) if not check.passed}
    assert "defects left to mend" in found


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
@pytest.mark.parametrize("must_differ", [True, False])
def test_a_figure_that_is_no_number_never_passes(figure, must_differ):
    assert not Check("any", figure, 1.0, must_differ).passed

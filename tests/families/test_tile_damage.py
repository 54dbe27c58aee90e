"""The tests of families that cut images into tiles fail for each mistake that is easily made with tiles."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from midsight.families import internvl, tiles
from midsight.prompts.token_layout import TokenLayout
from support.damages import compare_cases, declaring, failing

TILES = ["llava_next", "llava_onevision", "idefics3", "smolvlm", "internvl", "ovis2", "aya_vision", "llama4", "molmo2"]
WHOLE_IMAGE_FIRST = ("llava_next", "llava_onevision", "ovis2", "molmo2")
OTHER_PROMPT = "prompts whose token ids differ from the processor's own"


@pytest.fixture
def is_off_by(reference):
    """A vector of one of the cases has to be wrong."""

    def run(model, column=""):
        with pytest.raises(AssertionError, match=f"{column}.* is off by"):
            compare_cases(model, reference)

    return run


@pytest.mark.parametrize("name", TILES, indirect=True)
class TestTiles:
    """Every family has its order of tiles; the whole image is the first or the last."""

    def test_the_whole_image_at_the_other_end(self, is_off_by, model):
        original = model.loaded.family.vision.image_embeddings
        is_off_by(declaring(model, image_embeddings=lambda m, features, i: original(m, features.roll(1, dims=0), i)))

    def test_the_whole_image_left_out_of_the_mean(self, name, model):
        useful = model.loaded.family.vision.useful_patches

        def without_the_whole(image):
            patches = useful(image).clone()
            if len(patches) > 1:
                patches[0 if name in WHOLE_IMAGE_FIRST else -1] = False
            return patches

        assert "patches of filled crops that reach the decoder and are not in the mean" in failing(
            declaring(model, useful_patches=without_the_whole), "useful patches"
        )

    def test_tiles_of_another_image(self, is_off_by, model, monkeypatch):
        """The tiles of all images of a call are on one axis, and each image gets one of its neighbour's."""
        original = tiles.split_by_image
        monkeypatch.setattr(
            tiles, "split_by_image", lambda features, images: original(features.roll(1, dims=0), images)
        )
        is_off_by(model)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"], indirect=True)
class TestMarkedTiles:
    """Tiles with markers between their tokens, which the processor pads with zeros to one number."""

    def test_a_padding_tile_counted(self, is_off_by, model):
        vision = model.loaded.family.vision

        def padded(*args):
            image = vision.image_inputs(*args)
            zeros, all_of_it = torch.zeros_like(image.pixel_values[:1]), torch.ones_like(image.patch_mask[:1])
            return replace(
                image,
                pixel_values=torch.cat([image.pixel_values, zeros]),
                patch_mask=torch.cat([image.patch_mask, all_of_it]),
            )

        counting = declaring(
            model,
            image_inputs=padded,
            image_embeddings=lambda m, features, image: vision.image_embeddings(m, features[:-1], image),
        )
        is_off_by(counting, "vision_only_representation")
        assert "patches in the mean that never reach the decoder" in failing(counting, "useful patches")

    def test_markers_left_out(self, model):
        original = model.loaded.family.vision.image_inputs

        def unmarked(*args):
            image = original(*args)
            return replace(image, text=re.sub(r"<row_\d+_col_\d+>", "", image.text))

        assert OTHER_PROMPT in failing(declaring(model, image_inputs=unmarked), "prompts")

    def test_the_whole_image_written_first(self, model):
        original = model.loaded.family.vision.image_inputs

        def turned(*args):
            image = original(*args)
            *lines, whole = image.text.split("\n\n")
            return replace(image, text="\n\n".join([whole, *lines]))

        assert OTHER_PROMPT in failing(declaring(model, image_inputs=turned), "prompts")


@pytest.mark.parametrize("name", ["idefics3", "smolvlm", "aya_vision", "llama4"], indirect=True)
def test_markers_taken_for_image_tokens(is_off_by, model, monkeypatch):
    """As if all image tokens followed each other, up to the last one."""
    monkeypatch.setattr(
        TokenLayout,
        "image_indices",
        lambda layout: np.arange(layout.image_tokens) + layout.vision_token + 1 - layout.image_tokens,
    )
    is_off_by(model)


@pytest.mark.parametrize("name", ["aya_vision"], indirect=True)
@pytest.mark.parametrize("left_out", ["TILE_1", "TILE_GLOBAL"])
def test_names_of_tiles_left_out(model, left_out):
    original = model.loaded.family.vision.image_inputs

    def unnamed(*args):
        image = original(*args)
        return replace(image, text=image.text.replace(left_out, ""))

    assert OTHER_PROMPT in failing(declaring(model, image_inputs=unnamed), "prompts")


@pytest.mark.parametrize("name", ["internvl", "aya_vision"], indirect=True)
def test_an_image_processor_that_is_asked_alone_makes_one_tile(model, monkeypatch):
    """Only the whole processor of InternVL and Aya Vision asks it for several."""
    original = internvl.with_resizing

    def alone(*args, **options):
        image_processor = original(*args, **options)
        return lambda image, **_: image_processor(image, return_tensors="pt")

    monkeypatch.setattr(internvl, "with_resizing", alone)
    assert OTHER_PROMPT in failing(model, "prompts")

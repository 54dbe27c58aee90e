"""Crops and resizing of Phi-4-multimodal against transformers' own image processor."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tvf
from transformers import Phi4MultimodalImageProcessor

from midsight.errors import SampleError
from midsight.families.phi4_multimodal import crop_grid, image_inputs, resized_px
from support.pictures import picture

PROCESSOR = Phi4MultimodalImageProcessor()
WHOLE = SimpleNamespace(image_processor=PROCESSOR)
sides = st.integers(1, 9000)


def transformers_geometry(width, height):
    """Rows and columns of sub-crops and the size of the scaled image, read off transformers' padding."""
    resized = {}

    def resize(image, size):
        resized["size"] = (size[1], size[0])
        return torch.zeros((3, size[0], size[1]), device="meta")

    with mock.patch.object(tvf, "resize", resize), mock.patch.object(tvf, "pad", lambda image, *_, **__: image):
        _, mask = PROCESSOR.dynamic_preprocess(torch.zeros((3, height, width), device="meta"), 448, 14, 32, max_num=36)
    return (mask.shape[0] // 32, mask.shape[1] // 32), resized["size"]


@settings(max_examples=300, deadline=None)
@given(sides, sides)
def test_the_geometry_is_that_of_transformers(width, height):
    try:
        grid, size = transformers_geometry(width, height)
    except ValueError:
        with pytest.raises(SampleError, match="thinner than the 10 pixels"):
            resized_px(width, height, 448, 36)
        return
    assert resized_px(width, height, 448, 36) == size
    assert crop_grid(width, height, 448, 36) == grid


@settings(max_examples=300, deadline=None)
@given(sides, sides)
def test_a_scaled_image_keeps_its_size_and_grid_the_second_time(width, height):
    """Scaling with PIL first is only right if the processor then leaves the image alone."""
    try:
        size = resized_px(width, height, 448, 36)
    except SampleError:
        return
    assert resized_px(*size, 448, 36) == size
    assert crop_grid(*size, 448, 36) == crop_grid(width, height, 448, 36)


@pytest.mark.parametrize("size", [(64, 64), (896, 448), (500, 240), (150, 700), (640, 480)])
def test_tokens_and_masks_fit_the_crops(size):
    inputs = image_inputs(WHOLE, picture(size, 1), "pil", None)
    rows, columns = inputs.grid
    assert inputs.pixel_values.shape == (1 + rows * columns, 3, 448, 448)
    assert inputs.patch_mask.shape == (1 + rows * columns, 32, 32)
    assert inputs.patch_mask[0].all()
    assert inputs.original_size == size
    assert 256 + 1 + 16 < inputs.tokens <= 256 + 1 + 16 + rows * columns * 256 + 16 * rows


def test_pil_resizes_only_where_it_is_asked_to(monkeypatch):
    calls = []
    original = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *args: calls.append(args) or original(self, *args))
    image_inputs(WHOLE, picture((300, 200), 1), "transformers", None)
    assert calls == [((300, 200), Image.Resampling.BICUBIC)]  # picture() itself
    image_inputs(WHOLE, Image.new("RGB", (300, 200)), "pil", None)
    assert calls[1:] == [((448, 298), Image.Resampling.BILINEAR)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(300, 333), (3000, 2900)])
def test_the_two_resizings_differ_by_one_level_of_8_bits_at_most(size):
    """Figures in docs/numbers.md: equal where the image grows, one level in 0.2 % of pixels where it shrinks."""
    image = picture(size, 5)
    pil, own = (image_inputs(WHOLE, image, pixels, None).pixel_values.numpy()[1:] for pixels in ("pil", "transformers"))
    levels = np.abs(pil - own) * 127.5
    assert levels.max() <= 1.001
    assert (levels > 0.5).mean() < 0.01

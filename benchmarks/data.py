"""Images with questions: distinct, shared by ten questions each, and of mixed sizes; drawn, the same for everybody."""

from __future__ import annotations

import numpy as np
from PIL import Image

from benchmarks.original import Pair

MIXED_SIZES_PX = ((300, 300), (448, 448), (640, 480), (800, 600), (448, 1340), (1280, 720), (1344, 1344), (1920, 1080))
"""From one sub-crop to more than ten."""


def draw(size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth noise of that size, RGB."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def distinct(count: int) -> list[Pair]:
    """One question on each image."""
    return [(draw((640, 480), n), f"What is in picture {n}?") for n in range(count)]


def ten_questions(count: int) -> list[Pair]:
    """Ten questions on each image."""
    images = [draw((640, 480), n) for n in range(-(-count // 10))]
    return [(images[n // 10], f"Is there a thing of kind {n % 10} in it?") for n in range(count)]


def mixed_sizes(count: int) -> list[Pair]:
    """One question on each image, images of eight sizes."""
    sizes = [MIXED_SIZES_PX[n % len(MIXED_SIZES_PX)] for n in range(count)]
    return [(draw(size, n), f"What is in picture {n}?") for n, size in enumerate(sizes)]

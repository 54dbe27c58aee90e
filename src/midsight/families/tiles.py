"""Images as square tiles of one size: what the families that cut images into tiles have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from midsight.families.inputs import ImageInputs
from midsight.families.placement import device_of

TILES_PER_CALL = 16
"""Maximum number of tiles in one encoder call, which bounds its memory."""


def groups_of(images: Sequence[ImageInputs], most: int) -> Iterator[list[ImageInputs]]:
    """The images in order, in groups whose `pixel_values` have at most `most` rows together, or of one image."""
    group: list[ImageInputs] = []
    for image in images:
        if group and sum(len(other.pixel_values) for other in group) + len(image.pixel_values) > most:
            yield group
            group = []
        group.append(image)
    if group:
        yield group


def encode_tiles(tower: nn.Module, images: Sequence[ImageInputs], run: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """The features of each image, [tiles, ...]; `run` gives those of some tiles, [tiles, 3, side, side]."""
    device, dtype = device_of(tower), next(tower.parameters()).dtype
    for group in groups_of(images, TILES_PER_CALL):
        tiles = torch.cat([image.pixel_values for image in group]).to(device, dtype)
        features = torch.cat([run(part) for part in tiles.split(TILES_PER_CALL)])
        yield from split_by_image(features, group)


def split_by_image(features: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
    """Features of several images, [rows of their pixel_values, ...], cut into images."""
    return list(features.split([len(image.pixel_values) for image in images]))

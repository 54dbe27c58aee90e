"""transformers has two implementations of many image processors; this chooses one by its resizing."""

from __future__ import annotations

from typing import Any, Literal

Pixels = Literal["pil", "transformers"]
"""Which resizing makes the model's pixels: PIL's on 8-bit images, or transformers' own on tensors."""


def with_resizing(image_processor: Any, pixels: Pixels, *, pil: type, tensors: type) -> Any:
    """The image processor with the same settings in the class that resizes with PIL, or in the one for tensors."""
    wanted: Any = pil if pixels == "pil" else tensors
    return image_processor if type(image_processor) is wanted else wanted.from_dict(image_processor.to_dict())

"""Which of transformers' two implementations of an image processor makes a model's pixels."""

from __future__ import annotations

from typing import Any

from midsight.models.adapter import Pixels


def with_resizing(image_processor: Any, pixels: Pixels, *, pil: type, tensors: type) -> Any:
    """The image processor, its settings kept, in the class that resizes so: with PIL on 8-bit images, or on tensors."""
    wanted: Any = pil if pixels == "pil" else tensors
    return image_processor if type(image_processor) is wanted else wanted.from_dict(image_processor.to_dict())

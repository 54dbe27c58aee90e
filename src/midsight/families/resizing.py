"""transformers has two implementations of many image processors; this chooses one by its resizing."""

from __future__ import annotations

from typing import Any, Literal

from midsight.errors import MidsightError

Pixels = Literal["pil", "transformers"]
"""Which resizing makes the model's pixels: PIL's on 8-bit images, or transformers' own on tensors."""
USUAL_PIXELS: Pixels = "pil"
"""The resizing that most published models were trained with."""


def with_resizing(image_processor: Any, pixels: Pixels, *, pil: type, tensors: type) -> Any:
    """The image processor with the same settings in the class that resizes with PIL, or in the one for tensors."""
    wanted: Any = pil if pixels == "pil" else tensors
    return image_processor if type(image_processor) is wanted else wanted.from_dict(image_processor.to_dict())


def with_own_resizing(image_processor: Any, pixels: Pixels) -> Any:
    """The same for a family whose folders name different image processors: transformers calls a pair Name and NamePil.

    Raises MidsightError if there is no such pair.
    """
    import transformers  # a request names `Pixels`, and is judged before anything heavy is imported

    name = type(image_processor).__name__.removesuffix("Pil")
    pil, tensors = getattr(transformers, f"{name}Pil", None), getattr(transformers, name, None)
    if pil is None or tensors is None:
        raise MidsightError(
            f"transformers has no {name} that resizes with PIL and with tensors; use another processor."
        )
    return with_resizing(image_processor, pixels, pil=pil, tensors=tensors)

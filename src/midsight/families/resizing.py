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

    torchvision before 0.27 has no Lanczos filter for tensors. With it, transformers itself resizes by PIL where a
    processor asks for that filter, and so do both ways here.

    Raises MidsightError if there is no such pair.
    """
    import transformers  # a request names `Pixels`, and is judged before anything heavy is imported
    from transformers.models.auto.image_processing_auto import DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS

    name = type(image_processor).__name__.removesuffix("Pil")
    pil, tensors = getattr(transformers, f"{name}Pil", None), getattr(transformers, name, None)
    if pil is None or tensors is None:
        raise MidsightError(
            f"transformers has no {name} that resizes with PIL and with tensors; use another processor."
        )
    by_pil = pixels == "pil" or name in DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS
    return with_resizing(image_processor, "pil" if by_pil else pixels, pil=pil, tensors=tensors)

"""What to extract: the options of a run, and what they mean for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from midsight.errors import MidsightError
from midsight.models.adapter import Pixels
from midsight.models.loading import LoadedModel
from midsight.models.prompts import PromptTemplate, check_template
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.taps.tap import DEFAULT_POSITIONS, Tap, choose_layers, choose_positions, choose_taps

Vision = Literal["mean", "none"]
"""How the vision encoder's output is pooled; `none` leaves it out."""

PaddingSide = Literal["left", "right"]

UNMASKED_ATTENTION = ("flash", "paged")
"""How the names of attention kernels begin that take no mask for every token, as questions behind one prefix need."""


@dataclass(frozen=True)
class Request:
    """What to extract from every sample, as a user says it."""

    layers: str | int | Sequence[int] = "default"
    """`default`, `all`, or decoder layers like `0,8,-1`."""
    positions: str | Sequence[str] = DEFAULT_POSITIONS
    """Any of vision_token, query_token, image_mean."""
    residual: bool = False
    """Also the last layer's state before the final norm, where that layer is chosen."""
    vision: Vision = "mean"
    """Pooling of the vision encoder's output."""
    processor_pooled_pixels: bool = False
    """Also the averaged pixels that earlier scripts stored as vision features."""
    pixels: Pixels | None = None
    """Resizing of images; None is the one the published model was trained with."""
    answers: bool = True
    """Whether to decode answers."""
    max_new_tokens: int = 200
    """Longest answer, in tokens."""
    share: bool = True
    """Whether questions on the same images go on from one prefix; the numbers are the same up to rounding."""
    prompt: str = "{question}"
    """The user's text around the question."""
    system: str | None = None
    """Text of a system turn."""


@dataclass(frozen=True)
class Plan:
    """A request resolved for one model."""

    taps: tuple[Tap, ...]
    """Decoder states to take."""
    template: PromptTemplate
    """Words around the question."""
    pixels: Pixels
    """Resizing of images."""
    vision: bool
    """Whether the vision encoder's mean is kept."""
    processor_pooled_pixels: bool
    """Whether averaged pixels are kept."""
    answers: bool
    """Whether answers are decoded."""
    max_new_tokens: int
    """Longest answer, in tokens."""
    share: bool
    """Whether questions on the same images go on from one prefix."""
    vectors: dict[str, int]
    """Width of every vector column, in the order of the columns."""


def resolve(request: Request, model: LoadedModel) -> Plan:
    """What `request` means for `model`; raises MidsightError for a layer, position or choice it has not."""
    if request.vision not in get_args(Vision):
        raise MidsightError(f"--vision {request.vision!r} is unknown; give {' or '.join(get_args(Vision))}.")
    pixels = request.pixels or model.adapter.default_pixels
    if pixels not in get_args(Pixels):
        raise MidsightError(f"--pixels {pixels!r} is unknown; give {' or '.join(get_args(Pixels))}.")
    if request.max_new_tokens < 1:
        raise MidsightError(f"--max-new-tokens is {request.max_new_tokens}; give 1 or more, or --no-answers.")
    template = PromptTemplate(request.prompt, request.system)
    check_template(template, model.tokenizer, model.adapter)
    layers = choose_layers(request.layers, model.n_layers)
    taps = choose_taps(choose_positions(request.positions), layers, model.n_layers, residual=request.residual)
    vectors: dict[str, int] = {}
    if request.vision == "mean":
        vectors[VISION_ONLY] = model.adapter.vision_width(model.config)
    if request.processor_pooled_pixels:
        if model.adapter.crop_px is None:
            raise MidsightError(
                f"--processor-pooled-pixels averages the crops of an image, and {model.adapter.family} cuts none; "
                "leave it out."
            )
        vectors[PROCESSOR_POOLED_PIXELS] = model.adapter.crop_px(model.image_processor)
    vectors |= {str(tap): model.hidden_size for tap in taps}
    may_share = model.adapter.shares_image_prefix and not model.attention.startswith(UNMASKED_ATTENTION)
    return Plan(
        taps=taps,
        template=template,
        pixels=pixels,
        vision=request.vision == "mean",
        processor_pooled_pixels=request.processor_pooled_pixels,
        answers=request.answers,
        max_new_tokens=request.max_new_tokens,
        share=request.share and may_share,
        vectors=vectors,
    )

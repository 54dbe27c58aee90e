"""What to extract: the options of a run, and what they mean for one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeGuard, get_args

from midsight.errors import MidsightError, Option, unknown_option
from midsight.extraction.risk import Risk, RiskChoice, choose_risk
from midsight.families.resizing import Pixels
from midsight.prompts.prompt import PromptFormat, make_prompt_format
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.samples.columns import ColumnSource
from midsight.store.probe import Probe, ProbeOrigin, RiskOf
from midsight.taps.tap import DEFAULT_POSITIONS, Tap, choose_layers, choose_positions, choose_taps

if TYPE_CHECKING:
    from midsight.checkpoints.generation import AnswerSettings
    from midsight.checkpoints.loading import LoadedModel
    from midsight.families.family import Family

Vision = Literal["mean", "none"]
"""How the vision encoder's output is pooled; `none` leaves it out."""

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to extract from every sample, as the user asks for it.

    Args:
        layers: Decoder layers whose hidden states are stored: `default` (the first, the quarters and the last), `all`,
            or numbers from 0, as a list or like `0,8,-1`; -1 is the last. Stored is what a layer itself puts out,
            before what Qwen3-VL adds to image tokens after its first layers (deepstack). Default: `default`.
        positions: Tokens whose hidden states are stored, one or several of `vision_token` (the last of the image),
            `query_token` (the last of the prompt) and `image_mean` (all of the image, averaged). Default:
            `vision_token` and `query_token`.
        residual: Also the last layer's state before the final norm, if that layer is chosen. Default: False.
        vision: `mean` averages the vision encoder's output over its useful patches; `none` leaves it out. Default:
            `mean`.
        processor_pooled_pixels: Also the averaged pixels that earlier scripts stored as vision features. Default:
            False.
        pixels: `pil` or `transformers`, which resizes images. Default: the one that the published model was trained
            with.
        answers: Whether the model answers, greedily. Default: True.
        max_new_tokens: Maximum length of an answer, in tokens. Default: 200.
        plain_greedy: Take the likeliest token at every step, whatever the model's generation config says. Default:
            False.
        share: Whether questions on the same images share one prefix; the numbers are the same up to rounding. Default:
            True.
        prompt: The user's text. `{question}` stands for the sample's question, `{NAME}` for any other column and
            `{NAME?}` for one whose line is left out where it has no value; `{{` is a brace. `mcq` is VLMEvalKit's
            prompt for multiple choice. Default: `{question}`.
        system: Text of a system turn; empty text means no system turn. Default: what the chat template does.
        prompt_template: `auto` is the model folder's own chat template, `raw` the images and the user's text alone; or
            the path of a file with one. Default: `auto`.
        probe: A probe, or the folder of one, which gives each sample a risk before its answer. Default: none.
        risk_of: The value of the probe's label that is the risk: `false` for a label like `correct`, `true` for one
            like `hallucinated`. Default: `false`.
        abstain_above: The risk, from 0 to 1, above which no answer is decoded. Default: none, so that all are.
    """

    layers: str | int | Sequence[int] = "default"
    positions: str | Sequence[str] = DEFAULT_POSITIONS
    residual: bool = False
    vision: Vision = "mean"
    processor_pooled_pixels: bool = False
    pixels: Pixels | None = None
    answers: bool = True
    max_new_tokens: int = 200
    plain_greedy: bool = False
    share: bool = True
    prompt: str = "{question}"
    system: str | None = None
    prompt_template: str | Path = "auto"
    probe: Probe | str | Path | None = None
    risk_of: RiskOf = "false"
    abstain_above: float | None = None

    @property
    def risk(self) -> RiskChoice | None:
        """What it says about risks, None without a probe; raises MidsightError if that makes no sense."""
        return choose_risk(self.probe, self.risk_of, self.abstain_above, answers=self.answers)


class RequestKeywords(TypedDict, total=False):
    """The fields of Request, as keywords of a call."""

    layers: str | int | Sequence[int]
    positions: str | Sequence[str]
    residual: bool
    vision: Vision
    processor_pooled_pixels: bool
    pixels: Pixels | None
    answers: bool
    max_new_tokens: int
    plain_greedy: bool
    share: bool
    prompt: str
    system: str | None
    prompt_template: str | Path
    probe: Probe | str | Path | None
    risk_of: RiskOf
    abstain_above: float | None


REQUEST_OPTIONS = frozenset(field.name for field in fields(Request))


def make_request(keywords: Mapping[str, Any], *, call: Iterable[str] = ()) -> Request:
    """The request of a call with the arguments `call` of its own; raises MidsightError for a name that neither has."""
    for name in keywords:
        if name not in REQUEST_OPTIONS:
            raise unknown_option(name, {*REQUEST_OPTIONS, *call})
    if is_whole(most := keywords.get("max_new_tokens")):
        keywords = {**keywords, "max_new_tokens": int(most)}  # numpy's are no JSON
    return Request(**keywords)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number, Python's or numpy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A request resolved for one model."""

    taps: tuple[Tap, ...]
    """Decoder states to take."""
    prompt: PromptFormat
    """What stands around the question."""
    pixels: Pixels
    """Resizing of images."""
    vision: bool
    """Whether the vision encoder's mean is kept."""
    processor_pooled_pixels: bool
    """Whether averaged pixels are kept."""
    answers: bool
    """Whether answers are decoded."""
    max_new_tokens: int
    """Maximum number of new tokens in an answer."""
    answer_settings: AnswerSettings
    """What changes greedy answers; without values, the likeliest token is taken at every step."""
    share: bool
    """Whether questions on the same images share one prefix."""
    images_read_ahead: bool
    """Whether an image's tokens read each other in both directions, so that whole prompts need a mask."""
    longrope_threshold: int | None
    """Longest prompt, in tokens, that uses the short rotary factors; None without longrope."""
    vectors: dict[str, int]
    """Width of every vector column, in the order of the columns."""
    risk: Risk | None = None
    """What gives each sample a risk before its answer; None without a probe."""

    @property
    def reads_first_token(self) -> bool:
        """Whether the first token's distribution is stored, so that logits are computed."""
        return self.answers or self.risk is not None

    @property
    def answer_tokens(self) -> int:
        """Tokens that an answer may take; 0 without answers."""
        return self.max_new_tokens if self.answers else 0


def resolve(
    request: Request,
    model: LoadedModel,
    columns: Mapping[str, ColumnSource] = MappingProxyType({}),
    time: str | None = None,
) -> ResolvedRequest:
    """What `request` means for `model`; raises MidsightError for a value that the model does not have.

    `columns` are those of the data that the prompt may use; `time` is what its chat template is told, None for now.
    """
    from midsight.extraction.attention import takes_token_masks  # imports torch

    validate_request(request, model.n_layers)
    family = model.family
    pixels = choose_pixels(request.pixels, family)
    prompt = make_prompt_format(
        model.processor,
        family.prompt,
        user=request.prompt,
        system=request.system,
        prompt_template=request.prompt_template,
        own=model.chat_template,
        folder=model.name,
        columns=columns,
        time=time,
    )
    layers = choose_layers(request.layers, model.n_layers)
    taps = choose_taps(choose_positions(request.positions), layers, model.n_layers, residual=request.residual)
    vectors: dict[str, int] = {}
    if request.vision == "mean":
        vectors[VISION_ONLY] = family.vision.width(model.config)
    if request.processor_pooled_pixels:
        vectors[PROCESSOR_POOLED_PIXELS] = pooled_pixels_width(model)
    vectors |= {str(tap): model.hidden_size for tap in taps}
    masks = takes_token_masks(model.attention)
    if family.decoder.images_read_ahead and not masks:
        raise MidsightError(
            f"{model.name} was loaded with {model.attention} attention, which takes no mask for single tokens, and "
            f"{family.name} needs one for its images; load it with sdpa attention."
        )
    risk = request.risk
    may_share = family.decoder.shares_image_prefix and masks and not model.keeps_state
    return ResolvedRequest(
        taps=taps,
        prompt=prompt,
        pixels=pixels,
        vision=request.vision == "mean",
        processor_pooled_pixels=request.processor_pooled_pixels,
        answers=request.answers,
        max_new_tokens=request.max_new_tokens,
        answer_settings=replace(model.answer_settings, values={}) if request.plain_greedy else model.answer_settings,
        share=request.share and may_share,
        images_read_ahead=family.decoder.images_read_ahead,
        longrope_threshold=model.longrope_threshold,
        vectors=vectors,
        risk=None if risk is None else risk.resolve(origin_of_call(model, prompt, pixels), vectors),
    )


def padding_sides(model: LoadedModel) -> tuple[PaddingSide, ...]:
    """The sides on which prompts may be padded, the usual one first."""
    return ("left",) if model.keeps_state else ("right", "left")


def origin_of_call(model: LoadedModel, prompt: PromptFormat, pixels: Pixels) -> ProbeOrigin:
    """What will make the vectors of a call."""
    return ProbeOrigin(
        model=model.name,
        fingerprint=model.fingerprint,
        lora=model.lora,
        dtype=str(model.dtype).removeprefix("torch."),
        pixels=pixels,
        prompt=prompt.user.spelled,
        system=prompt.system,
        template_sha256=prompt.template.sha256,
    )


def validate_request(request: Request, n_layers: int | None) -> None:
    """Raises MidsightError for a value that no model takes, or no model with `n_layers` decoder layers if known."""
    if n_layers is not None:
        choose_layers(request.layers, n_layers)
    choose_positions(request.positions)
    validate_choice("vision", request.vision, get_args(Vision))
    if request.pixels is not None:
        validate_choice("pixels", request.pixels, get_args(Pixels))
    if not is_whole(request.max_new_tokens) or request.max_new_tokens < 1:
        raise MidsightError(
            Option("max_new_tokens"),
            f" is {request.max_new_tokens!r}; give 1 or more, or ",
            Option("answers", False),
            ".",
        )


def validate_choice(option: str, value: Any, choices: Sequence[str]) -> None:
    """Raises MidsightError if an option's value is not one of its choices."""
    if value not in choices:
        raise MidsightError(Option(option), f" is {value!r}; give {' or '.join(choices)}.")


def choose_pixels(pixels: Pixels | None, family: Family) -> Pixels:
    """The resizing; raises MidsightError for one that the family's image processor does not have."""
    if pixels is None:
        return family.vision.default_pixels
    if pixels not in family.vision.resizings:
        raise MidsightError(
            Option("pixels"),
            f" is {pixels!r}, and {family.name}'s image processor has only {', '.join(family.vision.resizings)}; leave "
            "it out.",
        )
    return pixels


def pooled_pixels_width(model: LoadedModel) -> int:
    """Pixel columns of a crop; raises MidsightError for a family without crops."""
    crop_px = model.family.vision.crop_px
    if crop_px is None:
        raise MidsightError(
            Option("processor_pooled_pixels"),
            f" averages the crops of an image, and {model.family.name}'s processor makes no crops, only patches; leave "
            "it out.",
        )
    return crop_px(model.config)

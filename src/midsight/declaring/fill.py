"""Fills a declaration from a model's config, module tree and processor, by the nearest shape that midsight knows."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from midsight.declaring.folder import UnknownModel
from midsight.errors import MidsightError, first_line
from midsight.families.family import Modules
from midsight.families.squares import LAST, Squares
from midsight.prompts.control_tokens import MARK_LIKE

KNOWN_INPUTS = frozenset(
    ("pixel_values", "text_replacement_offsets", "input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
)
"""What a processor makes for squares and their prompt."""


class OpenError(MidsightError):
    """Something that neither config nor module tree decides; the sentence says what."""


@dataclass(frozen=True)
class Declaration:
    """What was found for one model."""

    model_type: str
    """As in config.json; the family's name."""
    architecture: str
    """transformers' class."""
    shape: str
    """`squares`, or the module of the known family that is declared again for another class."""
    modules: Modules
    """Where the parts are."""
    image_token: str
    """The token that is repeated."""
    template_token: str
    """What a template renders for an image if that is another token; else empty."""
    placeholder: str
    """Regular expression of the other tokens that the processor writes for an image; empty if there are none."""
    squares: Squares | None
    """Where the features of squares come from; None for another shape."""


def fill(model: UnknownModel, hf_model: Any, image: Any) -> Declaration:
    """A declaration for a model; `hf_model` is its small copy, `image` a PIL image that its processor takes.

    Raises OpenError for what cannot be read.
    """
    shape = nearest_shape(hf_model)
    image_token, template_token = read_tokens(model)
    squares, placeholder = None, ""
    if shape == "squares":
        made = process(model, image)
        squares = read_squares(model, hf_model, made["pixel_values"])
        placeholder = markers_in(made, model.processor.tokenizer, template_token or image_token)
        tower = squares.vision_tower
    else:
        tower = known_family(shape).modules.vision_tower
    return Declaration(
        model.model_type,
        model.architecture,
        shape,
        read_modules(hf_model, tower),
        image_token,
        template_token,
        placeholder,
        squares,
    )


def nearest_shape(hf_model: Any) -> str:
    """The shape whose inputs and modules a model has, by the module of the family that declares it."""
    config, body = hf_model.config, hf_model.base_model
    takes = inspect.signature(type(hf_model).forward).parameters
    vision = getattr(config, "vision_config", None)
    if "image_grid_thw" in takes:
        if getattr(vision, "deepstack_visual_indexes", None):
            return "qwen3_vl"
        if hasattr(getattr(body, "visual", None), "post_layernorm"):
            return "glm4v"
        return "qwen2_5_vl" if getattr(vision, "window_size", None) else "qwen2_vl"
    if hasattr(body, "image_newline") and hasattr(config, "image_grid_pinpoints"):
        return "llava_onevision" if hasattr(config, "vision_aspect_ratio") else "llava_next"
    if "pixel_attention_mask" in takes and hasattr(body, "connector") and hasattr(config, "scale_factor"):
        return "idefics3"
    if "token_type_ids" in takes and hasattr(config, "mm_tokens_per_image"):
        return "gemma3"
    return "squares"


def known_family(shape: str) -> Any:
    """The FAMILY of a module of `midsight.families`."""
    return importlib.import_module(f"midsight.families.{shape}").FAMILY


def read_tokens(model: UnknownModel) -> tuple[str, str]:
    """The token that stands for image content, and the one that a template renders if it is another."""
    image_token_id = getattr(model.config, "image_token_id", None)
    if not isinstance(image_token_id, int):
        raise OpenError("config.json has no image_token_id, so that nothing says which token stands for images.")
    image_token = model.processor.tokenizer.convert_ids_to_tokens(image_token_id)
    if not isinstance(image_token, str):
        raise OpenError(f"The tokenizer has no token for the image_token_id {image_token_id} of config.json.")
    rendered = getattr(model.processor, "image_token", image_token)
    return image_token, "" if rendered == image_token else str(rendered)


def read_modules(hf_model: Any, tower: str) -> Modules:
    """Where the decoder's parts are."""
    names = {module: name for name, module in hf_model.named_modules()}
    decoder = hf_model.get_decoder()
    n_layers = hf_model.config.get_text_config().num_hidden_layers
    layers = [
        name for name, part in decoder.named_children() if isinstance(part, nn.ModuleList) and len(part) == n_layers
    ]
    norms = [name for name, part in decoder.named_children() if "norm" in type(part).__name__.lower()]
    parts = {"list of decoder layers": layers, "final norm": norms}
    for what, found in parts.items():
        if len(found) != 1:
            raise OpenError(f"{names[decoder] or 'The decoder'} has {len(found)} modules that may be the {what}.")
    return Modules(
        decoder=names[decoder],
        layers=f"{names[decoder]}.{layers[0]}",
        final_norm=f"{names[decoder]}.{norms[0]}",
        token_embedding=names[hf_model.get_input_embeddings()],
        lm_head=names[hf_model.get_output_embeddings()],
        vision_tower=tower,
    )


@dataclass(frozen=True)
class Called:
    """A call of a part of the model while image features were computed."""

    name: str
    """The part's path."""
    given: Tensor
    """Its first tensor."""
    output: Any
    """What it returned."""


@torch.inference_mode()
def read_squares(model: UnknownModel, hf_model: Any, pixels: Tensor) -> Squares:
    """Which states of which part go through which projector, found by comparing tensors on an image.

    `pixels` are what the processor makes of it, [squares, 3, side, side].
    """
    layer = getattr(model.config, "vision_feature_layer", None)
    if isinstance(layer, int) and layer >= 0:
        raise OpenError(
            f"config.json counts the vision_feature_layer {layer} from the first layer; a small copy has fewer layers."
        )
    if isinstance(layer, list | tuple):
        raise OpenError(
            f"config.json has the vision_feature_layer {[*layer]}: features of several layers are joined, and "
            "midsight's shapes have one."
        )
    called, embeddings = watch_features(hf_model, pixels)
    if len(called) != 2 or called[0].given.shape != pixels.shape:
        parts = ", ".join(one.name for one in called) or "no part of the model"
        raise OpenError(
            f"Between image and decoder are {parts}, and midsight's shape of squares has one encoder and one projector."
        )
    tower, projector = called
    feature, class_tokens = find_feature(hf_model.get_submodule(tower.name), pixels, projector.given)
    projected = projector.output
    if not isinstance(projected, Tensor) or not torch.equal(projected.flatten(0, -2), embeddings):
        raise OpenError(f"What {projector.name} returns is changed before it goes to the decoder.")
    return Squares(
        vision_tower=tower.name,
        projector=projector.name,
        feature=feature,
        class_tokens=class_tokens,
        pixels="pil" if has_pil_class(model.processor.image_processor) else "transformers",
    )


def process(model: UnknownModel, image: Any) -> Mapping[str, Any]:
    """What the processor makes of an image: `pixel_values` [squares, 3, side, side], and the text in its place."""
    token = getattr(model.processor, "image_token", "")
    try:
        made = model.processor(
            text=[token], images=[image], return_tensors="pt", return_text_replacement_offsets=True
        )  # fmt: skip
    except Exception as error:
        raise OpenError(f"The processor does not take {token!r} and one image: {first_line(error)}.") from error
    pixels = made.get("pixel_values")
    others = sorted({*made} - KNOWN_INPUTS)
    if not isinstance(pixels, Tensor) or pixels.dim() != 4 or others:
        shape = [*pixels.shape] if isinstance(pixels, Tensor) else "none"
        raise OpenError(
            f"The processor makes pixel_values of the shape {shape}{' and ' if others else ''}{', '.join(others)}, "
            "which is none of midsight's shapes."
        )
    if len(made.get("text_replacement_offsets") or ()) != 1:
        raise OpenError("The processor does not say what it writes for an image.")
    return made


def markers_in(made: Mapping[str, Any], tokenizer: Any, own: str) -> str:
    """A regular expression of the tokens in the text for an image, without `own` and those that look like words."""
    ((written,),) = made["text_replacement_offsets"]
    added = sorted(token for token in tokenizer.get_added_vocab() if token in written["replacement"] and token != own)
    return "|".join(re.escape(token) for token in added if MARK_LIKE.fullmatch(token))


def watch_features(hf_model: Any, pixels: Tensor) -> tuple[list[Called], Tensor]:
    """The parts that were called for image features, in order, and the embeddings, [tokens, hidden size]."""
    called: list[Called] = []
    decoder = hf_model.get_decoder()
    names = {module: name for name, module in hf_model.named_modules()}

    def keep(part: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        given = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        if given is not None:
            called.append(Called(names[part], given, output))

    parts = [part for part in hf_model.base_model.children() if part is not decoder]
    hooks = [part.register_forward_hook(keep, with_kwargs=True) for part in parts]
    try:
        output = hf_model.get_image_features(pixel_values=pixels)
    except Exception as error:
        raise OpenError(
            f"get_image_features does not take the processor's pixel_values alone: {first_line(error)}."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    made = output.pooler_output
    return called, (made if isinstance(made, Tensor) else torch.cat([*made])).flatten(0, -2)


def find_feature(tower: Any, pixels: Tensor, given: Tensor) -> tuple[int | str, int]:
    """Which of the encoder's states the projector gets, and how many positions before the patches it does not get."""
    output = tower(pixels, output_hidden_states=True)
    states: dict[int | str, Tensor] = {LAST: output.last_hidden_state}
    states |= {-place: state for place, state in enumerate(reversed(output.hidden_states or ()), start=1)}
    for name, state in states.items():
        dropped = state.shape[1] - given.shape[1] if state.dim() == given.dim() == 3 else -1
        if dropped in (0, 1) and torch.equal(state[:, dropped:], given):
            return name, dropped
    raise OpenError("None of the encoder's states goes to the projector as it is.")


def has_pil_class(image_processor: Any) -> bool:
    """Whether transformers also has a class of this image processor that resizes with PIL."""
    return hasattr(transformers, f"{type(image_processor).__name__.removesuffix('Pil')}Pil")

"""The eight scripts: how their files are recognised, and which quantities they store under which names.

Source: github alliedbrother/HALP_EACL at 342e35c, read and partly run; no code of theirs is used here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY

VISION_TOKEN, QUERY_TOKEN = "vision_token_representation", "query_token_representation"
POSITIONS = (VISION_TOKEN, QUERY_TOKEN)
"""Groups of a sample that hold one vector for each layer."""

LayerRule = Literal["normed", "raw", "one early", "unknown"]
"""What `layer_k` is. normed: the output of layer k, the last one after the final norm. raw: the same, the last one
before the norm. one early: what enters layer k."""


@dataclass(frozen=True)
class Quantity:
    """What a script stores under one name."""

    column: str | None
    """Its column in a run; for a position, the beginning of it. None if it is not kept."""
    meaning: str
    """What it is."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What one script stores."""

    model: str
    """The model that it is for."""
    layers: LayerRule
    """What `layer_k` is."""
    vision_only: Quantity
    """What `vision_only_representation` is."""
    vision_token: Quantity
    """What `vision_token_representation` is."""
    query_token: Quantity
    """What `query_token_representation` is."""
    model_type: str | None = None
    """The files' attribute of that name."""
    max_new_tokens: int | None = 200
    """Longest answer, in tokens."""
    prompt_in_answer: bool = False
    """Whether answers have the prompt in front."""

    def column_of(self, position: str, layer: int, layers: int) -> str:
        """The run's column for a dataset `position/layer_{layer}` of a model with `layers` layers."""
        column = self._quantity(position).column or position
        if self.layers == "one early":
            return f"{column}.layer_{layer - 1}" if layer else f"{column}.embed"
        last = self.layers == "raw" and layer == layers - 1
        return f"{column}.layer_{layer}" + ("_residual" if last else "")

    def meaning_of(self, position: str, layer: int, layers: int) -> str:
        """The same quantity in words."""
        if self.layers == "unknown":
            what = "the state called so in the files"
        elif self.layers == "one early":
            what = f"output of layer {layer - 1}" if layer else "what enters layer 0, the embedding"
        elif layer < layers - 1:
            what = f"output of layer {layer}"
        else:
            what = f"output of layer {layer}, {'after' if self.layers == 'normed' else 'before'} the final norm"
        return f"{position}/layer_{layer} of the files: {what}, at {self._quantity(position).meaning}"

    def _quantity(self, position: str) -> Quantity:
        return self.vision_token if position == VISION_TOKEN else self.query_token


def _guess(rule: str) -> Quantity:
    """A position that is guessed from lengths; it lies somewhere in the image."""
    return Quantity("guessed_index_representation", f"the index {rule}, which moves with the question's length")


LAST_IMAGE_TOKEN = Quantity(VISION_TOKEN, "the last image token")
LAST_PROMPT_TOKEN = Quantity(QUERY_TOKEN, "the last prompt token")
ENCODER_MEAN = Quantity(VISION_ONLY, "the vision encoder's mean")
PIXELS = Quantity(PROCESSOR_POOLED_PIXELS, "the processor's pixels averaged over crops, channels and rows")

SCRIPTS: Mapping[str, Script] = {
    "phi4": Script(
        model="Phi-4-multimodal",
        model_type="phi-4-multimodal",
        layers="normed",
        vision_only=PIXELS,
        vision_token=LAST_IMAGE_TOKEN,
        query_token=LAST_PROMPT_TOKEN,
    ),
    "llama": Script(
        model="Llama 3.2 Vision",
        model_type="llama-3.2-11b-vision",
        layers="normed",
        vision_only=Quantity("all_tiles_representation", "the encoder's mean over all tiles, padding tiles too"),
        vision_token=LAST_IMAGE_TOKEN,
        query_token=LAST_PROMPT_TOKEN,
    ),
    "gemma": Script(
        model="Gemma 3",
        model_type="gemma-3-12b-multimodal",
        layers="raw",
        vision_only=ENCODER_MEAN,
        vision_token=_guess("min(255, length // 2)"),
        query_token=LAST_PROMPT_TOKEN,
    ),
    "qwen": Script(
        model="Qwen2.5-VL",
        model_type="qwen2.5-vl-7b-instruct",
        layers="raw",
        vision_only=ENCODER_MEAN,
        vision_token=_guess("min(patches, length // 2)"),
        query_token=LAST_PROMPT_TOKEN,
    ),
    "smolvlm": Script(
        model="SmolVLM2",
        model_type="smolvlm2-2.2b-multimodal",
        layers="one early",
        vision_only=Quantity(
            "all_crops_representation", "the encoder's mean over all crops, after or before its norm by version"
        ),
        vision_token=_guess("min(max(200, length // 4), 800)"),
        query_token=LAST_PROMPT_TOKEN,
        max_new_tokens=100,
        prompt_in_answer=True,
    ),
    "llava": Script(
        model="LLaVA-NeXT",
        layers="one early",
        vision_only=Quantity(None, "one mean per image token over the hidden axis, so its length varies"),
        vision_token=_guess("min(max(400, length // 3), 1500)"),
        query_token=LAST_PROMPT_TOKEN,
        max_new_tokens=100,
    ),
    "fastvlm": Script(
        model="FastVLM",
        layers="one early",
        vision_only=Quantity("tower_mean_representation", "the mean over the vision tower's output"),
        vision_token=Quantity("first_image_token_representation", "the first image token"),
        query_token=Quantity(
            "unexpanded_end_representation", "the last index of the prompt before the image is expanded: an image patch"
        ),
        max_new_tokens=100,
    ),
    "molmo": Script(
        model="Molmo",
        layers="raw",
        vision_only=Quantity(
            "projected_mean_representation", "the mean of the vision backbone's output, after pooling and projection"
        ),
        vision_token=Quantity("after_image_representation", "the token after the last image patch"),
        query_token=LAST_PROMPT_TOKEN,
    ),
    "other": Script(
        model="unknown",
        layers="unknown",
        vision_only=Quantity("halp_vision_only_representation", "what the files call so"),
        vision_token=Quantity("halp_vision_token_representation", "what the files call the vision token"),
        query_token=Quantity("halp_query_token_representation", "what the files call the query token"),
        max_new_tokens=None,
    ),
}
"""By the name that `--script` takes; `other` claims nothing about the quantities."""

_LAYERS_WITHOUT_ATTRIBUTES: Mapping[tuple[int, ...], str] = {(0, 8, 16, 24, 31): "llava", (0, 7, 14, 21, 27): "fastvlm"}
_BY_NAME = {"molmo": "molmo", "llava": "llava", "fastvlm": "fastvlm", "smolvlm": "smolvlm", "gemma": "gemma",
            "qwen": "qwen", "phi": "phi4", "llama": "llama"}  # fmt: skip
"""A piece of a model's or a file's name -> script; `llama` comes last, because it is in other models' names."""


def recognise(attributes: Mapping[str, str], file_name: str, layers: Collection[int]) -> str | None:
    """The script that wrote a file.

    Args:
        attributes: The file's attributes.
        file_name: Its name.
        layers: The layers that its samples have.

    Returns:
        A key of SCRIPTS, or None if it cannot be told.
    """
    for name, script in SCRIPTS.items():
        if script.model_type is not None and attributes.get("model_type") == script.model_type:
            return name
    for text in (attributes.get("model_type", ""), attributes.get("model_name", ""), file_name):
        for piece, name in _BY_NAME.items():
            if piece in text.casefold():
                return name
    return _LAYERS_WITHOUT_ATTRIBUTES.get(tuple(sorted(layers))) if not attributes else None

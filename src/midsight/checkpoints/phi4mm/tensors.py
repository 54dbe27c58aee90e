"""Accounting for every tensor of a published folder: it is loaded under its native name, merged, or left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from midsight.checkpoints.phi4mm.config import Shapes
from midsight.errors import MidsightError, ModelFileError
from midsight.families.phi4_multimodal import AUDIO_EMBED

LORA = re.compile(r"(?P<target>model\.layers\.\d+\..+)\.lora_(?P<factor>[AB])\.(?P<task>vision|speech)\.weight")

RENAMES: tuple[tuple[str, str], ...] = (
    (r"\.base_layer\.weight$", ".weight"),
    (r"\.image_embed\.glb_GN$", ".image_embed.global_img_feature_extensor"),
    (r"\.image_embed\.sub_GN$", ".image_embed.sub_img_feature_extensor"),
    (r"\.img_projection\.0\.", ".img_projection_up."),
    (r"\.img_projection\.2\.", ".img_projection_down."),
    (r"\.audio_projection\.speech\.0\.", ".up_proj_for_speech."),
    (r"\.audio_projection\.speech\.2\.", ".down_proj_for_speech."),
    (r"\.audio_projection\.vision\.0\.", ".up_proj_for_vision_speech."),
    (r"\.audio_projection\.vision\.2\.", ".down_proj_for_vision_speech."),
    (r"\.(feed_forward_(?:in|out))\.net\.0\.linear\.", r".\1.gate_up_proj."),
    (r"\.(feed_forward_(?:in|out))\.net\.2\.", r".\1.down_proj."),
    (r"(audio_embed\..*\.self_attn)\.linear_(q|k|v)\.", r"\1.\2_proj."),
    (r"(audio_embed\..*\.self_attn)\.linear_out\.", r"\1.o_proj."),
)
"""From published to native names; a name that no pattern matches stays the same."""


@dataclass(frozen=True)
class LoraPair:
    """The published names of the two factors of one weight's LoRA."""

    a: str
    """[rank, columns of the weight]."""
    b: str
    """[rows of the weight, rank]."""


@dataclass(frozen=True)
class Accounts:
    """What is done with each tensor of the folder."""

    loaded: Mapping[str, str]
    """From native to published name."""
    vision_lora: Mapping[str, LoraPair]
    """From a weight's native name to the factors of its vision LoRA."""
    left_out: tuple[str, ...]
    """Published names that are not loaded: the speech LoRA, and the audio tower unless requested."""


def native_name(published: str) -> str:
    """The name in transformers' class of a published tensor that is not a LoRA factor."""
    for pattern, replacement in RENAMES:
        published = re.sub(pattern, replacement, published)
    return published


def account_for(published: Shapes, native: Shapes, *, rank: int, audio: bool = False) -> Accounts:
    """Compares all `published` tensors with the `native` ones that transformers' class expects.

    `rank` is the rank of the vision LoRA; with `audio` the audio tower is loaded. Raises MidsightError if a tensor is
    missing, extra or misshapen, or if two tensors have the same native name; the error names the tensor.
    """
    sources: dict[str, str] = {}
    factors: dict[str, dict[str, dict[str, str]]] = {"vision": {}, "speech": {}}
    for name in published:
        lora = LORA.fullmatch(name)
        if lora:
            factors[lora["task"]].setdefault(f"{lora['target']}.weight", {})[lora["factor"]] = name
            continue
        target = _expected_name(name, published, native)
        if target in sources:
            raise MidsightError(f"The folder has {sources[target]} and {name}, which are the same weight; keep one.")
        sources[target] = name
    missing = [name for name in native if name != "lm_head.weight" and name not in sources]
    if missing:
        raise ModelFileError(f"The folder lacks {len(missing)} tensors, the first is {missing[0]}")
    adapted = {name for name, source in sources.items() if source.endswith(".base_layer.weight")}
    vision = _pair_up("vision", factors["vision"], adapted, published, native, rank)
    speech = _pair_up("speech", factors["speech"], adapted, published, native, None)
    left_out = [name for pair in speech.values() for name in (pair.a, pair.b)]
    loaded = {name: source for name, source in sources.items() if audio or not name.startswith(f"{AUDIO_EMBED}.")}
    left_out += [source for name, source in sources.items() if name not in loaded]
    return Accounts(loaded, vision, tuple(left_out))


def _expected_name(name: str, published: Shapes, native: Shapes) -> str:
    """The native name of a published tensor; raises MidsightError if the model has no such tensor or another shape."""
    target = native_name(name)
    if target not in native or target == "lm_head.weight":
        raise MidsightError(
            f"The folder has the tensor {name}, which Phi-4-multimodal does not have; remove it if it is not part of "
            "the model."
        )
    if published[name] != native[target]:
        raise MidsightError(
            f"The tensor {name} has the shape {published[name]}, but config.json needs {native[target]}; use "
            "config.json and weights of the same model."
        )
    return target


def _pair_up(
    task: str,
    factors: Mapping[str, Mapping[str, str]],
    adapted: Set[str],
    published: Shapes,
    native: Shapes,
    rank: int | None,
) -> dict[str, LoraPair]:
    """The factors of every adapted weight; raises MidsightError if one is missing or has another shape.

    Without `rank`, the rank of A is what B must have.
    """
    for target in sorted(adapted | set(factors)):
        if target not in adapted or set(factors.get(target, ())) != {"A", "B"}:
            raise ModelFileError(f"The {task} LoRA of {target} is not complete")
    pairs = {target: LoraPair(found["A"], found["B"]) for target, found in factors.items()}
    for target, pair in pairs.items():
        rows, columns = native[target]
        expected = published[pair.a][0] if rank is None and published[pair.a] else rank
        for name, shape in ((pair.a, (expected, columns)), (pair.b, (rows, expected))):
            if published[name] != shape:
                raise MidsightError(
                    f"The tensor {name} has the shape {published[name]}, but config.json needs {shape}; use "
                    "config.json and weights of the same model."
                )
    return pairs

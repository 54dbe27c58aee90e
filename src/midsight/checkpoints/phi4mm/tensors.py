"""Accounting for every tensor of a published folder: it is loaded under its native name, merged, or left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from midsight.checkpoints.lora import LoraPair
from midsight.checkpoints.phi4mm.config import LoraScale, Shapes
from midsight.errors import MidsightError, ModelFileError, Option, counted
from midsight.families.phi4_multimodal import AUDIO_EMBED

SOUND = f"{AUDIO_EMBED}."
"""How the native names of the audio tower's tensors start."""
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
class Accounts:
    """What is done with each tensor of the folder."""

    loaded: Mapping[str, str]
    """From native to published name."""
    vision_lora: Mapping[str, LoraPair]
    """From the path of a linear layer to the factors of its vision LoRA."""
    left_out: tuple[str, ...]
    """Published names that are not loaded: the speech LoRA, and the audio tower unless requested."""


def native_name(published: str) -> str:
    """The name in transformers' class of a published tensor that is not a LoRA factor."""
    for pattern, replacement in RENAMES:
        published = re.sub(pattern, replacement, published)
    return published


def account_for(published: Shapes, native: Shapes, *, lora: LoraScale, audio: bool = False) -> Accounts:
    """Compares all `published` tensors with the `native` ones that transformers' class expects.

    `lora` is the vision LoRA's; with `audio` the audio tower is loaded. Raises MidsightError if a tensor is
    missing, extra or misshapen, or if two tensors have the same native name; the error names the tensor.
    """
    sources: dict[str, str] = {}
    factors: dict[str, dict[str, dict[str, str]]] = {"vision": {}, "speech": {}}
    for name in published:
        found = LORA.fullmatch(name)
        if found:
            factors[found["task"]].setdefault(f"{found['target']}.weight", {})[found["factor"]] = name
            continue
        target = _expected_name(name, published, native)
        if target in sources:
            raise MidsightError(f"The folder has {sources[target]} and {name}, which are the same weight; keep one.")
        sources[target] = name
    _require_whole(sources, native, audio=audio)
    adapted = {name for name, source in sources.items() if source.endswith(".base_layer.weight")}
    vision = _pair_up("vision", factors["vision"], adapted, published, native, lora.rank)
    # fine-tuning for images removes the speech LoRA: then it is absent as a whole
    speech = _pair_up("speech", factors["speech"], adapted if factors["speech"] else set(), published, native, None)
    loaded = {name: source for name, source in sources.items() if audio or not name.startswith(SOUND)}
    left_out = [name for pair in speech.values() for name in pair]
    left_out += [source for name, source in sources.items() if name not in loaded]
    pairs = {name.removesuffix(".weight"): LoraPair(a, b, lora.scale) for name, (a, b) in vision.items()}
    return Accounts(loaded, pairs, tuple(left_out))


def _require_whole(sources: Mapping[str, str], native: Shapes, *, audio: bool) -> None:
    """Raises MidsightError for a missing tensor; the audio tower may be absent as a whole unless it is requested."""
    has_sound = any(name.startswith(SOUND) for name in sources)
    if audio and not has_sound:
        raise MidsightError("The folder has no audio tower; leave ", Option("audio"), " out.")
    missing = [
        name
        for name in native
        if name != "lm_head.weight" and name not in sources and (has_sound or not name.startswith(SOUND))
    ]
    if missing:
        raise ModelFileError(f"The folder lacks {counted(len(missing), 'tensor')}, the first is {missing[0]}")


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
) -> dict[str, tuple[str, str]]:
    """The names of A and B for every adapted weight; raises MidsightError if one is missing or has another shape.

    Without `rank`, the rank of A is what B must have.
    """
    for target in sorted(adapted | set(factors)):
        if target not in adapted or set(factors.get(target, ())) != {"A", "B"}:
            raise ModelFileError(f"The {task} LoRA of {target} is not complete")
    pairs = {target: (found["A"], found["B"]) for target, found in factors.items()}
    for target, (a, b) in pairs.items():
        rows, columns = native[target]
        expected = published[a][0] if rank is None and published[a] else rank
        for name, shape in ((a, (expected, columns)), (b, (rows, expected))):
            if published[name] != shape:
                raise MidsightError(
                    f"The tensor {name} has the shape {published[name]}, but config.json needs {shape}; use "
                    "config.json and weights of the same model."
                )
    return pairs

"""Every tensor of a published folder accounted for: loaded under its native name, merged, or left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from midsight.errors import MidsightError
from midsight.models.phi4_multimodal import AUDIO_EMBED
from midsight.models.phi4mm.config import Shapes

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
"""Published name to native name; what no line matches keeps its name."""


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one LoRA-adapted weight, by published name."""

    a: str
    """[rank, columns of the weight]."""
    b: str
    """[rows of the weight, rank]."""


@dataclass(frozen=True)
class Accounts:
    """Where each tensor of the folder goes."""

    loaded: Mapping[str, str]
    """Native name to published name."""
    vision_lora: Mapping[str, LoraPair]
    """Native name of the weight to the factors of its vision LoRA."""
    left_out: tuple[str, ...]
    """Published names that are left out on purpose: the speech LoRA, and the audio tower unless asked for."""


def native_name(published: str) -> str:
    """The name that transformers' class has for a published tensor that is no LoRA factor."""
    for pattern, replacement in RENAMES:
        published = re.sub(pattern, replacement, published)
    return published


def account_for(published: Shapes, native: Shapes, *, rank: int, audio: bool = False) -> Accounts:
    """Accounts for all `published` tensors against the `native` ones that transformers' class expects.

    `rank` is the vision LoRA's; with `audio` the audio tower is loaded. Raises MidsightError naming a
    tensor that is missing, extra, misshapen, or the second of two for one place.
    """
    sources: dict[str, str] = {}
    factors: dict[str, dict[str, dict[str, str]]] = {"vision": {}, "speech": {}}
    for name in published:
        lora = LORA.fullmatch(name)
        if lora:
            factors[lora["task"]].setdefault(f"{lora['target']}.weight", {})[lora["factor"]] = name
            continue
        target = _check_expected(name, published, native)
        if target in sources:
            raise MidsightError(f"The folder has {sources[target]} and {name}, two tensors for one place; keep one.")
        sources[target] = name
    missing = [name for name in native if name != "lm_head.weight" and name not in sources]
    if missing:
        raise MidsightError(f"The folder lacks {len(missing)} tensors, {missing[0]} the first; download it again.")
    adapted = {name for name, source in sources.items() if source.endswith(".base_layer.weight")}
    vision = _pair_up("vision", factors["vision"], adapted, published, native, rank)
    speech = _pair_up("speech", factors["speech"], adapted, published, native, None)
    left_out = [name for pair in speech.values() for name in (pair.a, pair.b)]
    loaded = {name: source for name, source in sources.items() if audio or not name.startswith(f"{AUDIO_EMBED}.")}
    left_out += [source for name, source in sources.items() if name not in loaded]
    return Accounts(loaded, vision, tuple(left_out))


def _check_expected(name: str, published: Shapes, native: Shapes) -> str:
    """The native name of a published tensor."""
    target = native_name(name)
    if target not in native or target == "lm_head.weight":
        raise MidsightError(
            f"The folder has the tensor {name}, which Phi-4-multimodal does not have; it may change the numbers."
        )
    if published[name] != native[target]:
        raise MidsightError(
            f"The tensor {name} has the shape {published[name]} where {native[target]} fits config.json."
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
    """The factors of every adapted weight; without a `rank`, that of each A counts for its B."""
    for target in sorted(adapted | set(factors)):
        if target not in adapted or set(factors.get(target, ())) != {"A", "B"}:
            raise MidsightError(f"The {task} LoRA of {target} is not whole; download the folder again.")
    pairs = {target: LoraPair(found["A"], found["B"]) for target, found in factors.items()}
    for target, pair in pairs.items():
        rows, columns = native[target]
        expected = published[pair.a][0] if rank is None and published[pair.a] else rank
        for name, shape in ((pair.a, (expected, columns)), (pair.b, (rows, expected))):
            if published[name] != shape:
                raise MidsightError(f"The tensor {name} has the shape {published[name]} where {shape} fits.")
    return pairs

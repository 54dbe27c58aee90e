"""Every tensor of a published folder accounted for: loaded under its native name, merged, or left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from midsight.errors import MidsightError
from midsight.models.phi4mm.config import Shapes

EMBED = "model.embed_tokens_extend"
AUDIO = f"{EMBED}.audio_embed"
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

    `rank` is the vision LoRA's. Raises MidsightError naming a tensor that is missing, extra or misshapen.
    """
    loaded: dict[str, str] = {}
    factors: dict[str, dict[str, str]] = {}
    left_out: list[str] = []
    for name in published:
        lora = LORA.fullmatch(name)
        if lora and lora["task"] == "vision":
            factors.setdefault(f"{lora['target']}.weight", {})[lora["factor"]] = name
        elif lora or (name.startswith(AUDIO) and not audio):
            left_out.append(name)
            if not lora:
                _check_expected(name, published, native)
        else:
            _check_expected(name, published, native)
            loaded[native_name(name)] = name
    wanted = [name for name in native if name != "lm_head.weight" and (audio or not name.startswith(AUDIO))]
    missing = [name for name in wanted if name not in loaded]
    if missing:
        raise MidsightError(f"The folder lacks {len(missing)} tensors, {missing[0]} the first; download it again.")
    pairs = {target: _pair(target, found, published, native, rank) for target, found in factors.items()}
    adapted = {name for name, source in loaded.items() if source.endswith(".base_layer.weight")}
    for target in sorted(adapted ^ set(pairs)):
        raise MidsightError(f"The vision LoRA of {target} is not whole; download the folder again.")
    return Accounts(loaded, pairs, tuple(left_out))


def _check_expected(name: str, published: Shapes, native: Shapes) -> None:
    target = native_name(name)
    if target not in native or target == "lm_head.weight":
        raise MidsightError(
            f"The folder has the tensor {name}, which Phi-4-multimodal does not have; it may change the numbers."
        )
    if published[name] != native[target]:
        raise MidsightError(
            f"The tensor {name} has the shape {published[name]} where {native[target]} fits config.json."
        )


def _pair(target: str, found: Mapping[str, str], published: Shapes, native: Shapes, rank: int) -> LoraPair:
    if set(found) != {"A", "B"} or target not in native:
        raise MidsightError(f"The vision LoRA of {target} is not whole; download the folder again.")
    rows, columns = native[target]
    for factor, shape in (("A", (rank, columns)), ("B", (rows, rank))):
        if published[found[factor]] != shape:
            raise MidsightError(
                f"The tensor {found[factor]} has the shape {published[found[factor]]} where {shape} fits."
            )
    return LoraPair(found["A"], found["B"])

"""How a model is to be loaded, as the user spells it: judged without torch, which takes seconds to import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from midsight.errors import MidsightError, Option

Lora = Literal["auto", "merged", "unmerged", "off"]
"""How the LoRA that image input needs is applied: added to the weights, computed beside them, or left out, which
gives another model's numbers. `auto` merges in float32. In 16 bits it keeps the LoRA beside the weights, as the
published code does, because merged weights are rounded once more (docs/checkpoints.md)."""
LoraMode = Literal["merged", "unmerged", "off"]
"""How a LoRA beside the weights is applied: added to them, computed beside them, or left out."""
DeviceMap = Literal["auto"] | Mapping[int, str]
"""Where decoder layers are: `auto`, or the device of some layers by their number; the others are on the main device."""

DTYPES = ("float32", "bfloat16", "float16")
"""Names of the dtypes that weights may have in memory."""
DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9][0-9]?))?")
"""Names of devices."""


class LoadKeywords(TypedDict, total=False):
    """How a model is loaded, as keywords of a call."""

    revision: str | None
    dtype: str
    device: str
    lora: Lora
    base: str | Path | None
    base_revision: str | None
    device_map: DeviceMap | None
    family: str | Path | None


def validate_loading(loading: LoadKeywords) -> None:
    """Raises MidsightError for a value that no machine and no model takes."""
    validate_lora(loading.get("lora", "auto"))
    validate_device(loading.get("device", "auto"))
    validate_dtype(loading.get("dtype", "auto"))
    if loading.get("device_map") is not None:
        validate_device_map(loading.get("device_map"))


def validate_lora(lora: str) -> None:
    """Raises MidsightError unless this is a value of `lora`."""
    if lora not in get_args(Lora):
        raise MidsightError(Option("lora", lora), f" is unknown; give {' or '.join(get_args(Lora))}.")


def validate_device(device: str) -> None:
    """Raises MidsightError unless this is the name of a device, or `auto`."""
    if device != "auto" and not DEVICE.fullmatch(str(device)):
        raise MidsightError(Option("device", device), " is unknown; give auto, cpu, mps, cuda or cuda:N.")


def validate_dtype(dtype: str) -> None:
    """Raises MidsightError unless this is the name of a dtype, or `auto`."""
    if dtype not in ("auto", *DTYPES):
        raise MidsightError(Option("dtype", dtype), " is unknown; give auto, float32, bfloat16 or float16.")


def validate_device_map(device_map: Any) -> None:
    """Raises MidsightError for a map that is not one."""
    is_map = isinstance(device_map, Mapping) and all(
        type(layer) is int and layer >= 0 and isinstance(place, str) for layer, place in device_map.items()
    )
    if device_map != "auto" and not is_map:
        raise MidsightError(
            Option("device_map"),
            f" is {device_map!r}; give auto, or in Python a mapping from numbers of layers to devices or disk.",
        )


def closest_to_float32(dtype: object) -> LoraMode:
    """How `lora="auto"` applies a LoRA beside weights of a dtype, which is torch's or its name."""
    return "merged" if str(dtype).removeprefix("torch.") == "float32" else "unmerged"

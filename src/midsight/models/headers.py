"""What safetensors files say of themselves: names, shapes and dtypes of their tensors, no weights read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from midsight.errors import MidsightError

INDEX = "model.safetensors.index.json"
ONLY_WEIGHTS = "model.safetensors"
"""The weights of a model that has no index."""
FLOATS = ("BF16", "F16", "F32", "F64")
"""Dtypes of weights that stand for themselves: others have a scale somewhere else."""


@dataclass(frozen=True)
class TensorHeader:
    """One stored tensor, unread."""

    file: Path
    """The safetensors file that holds it."""
    shape: tuple[int, ...]
    """Its sizes."""
    dtype: str
    """As stored, in safetensors' spelling: `BF16`, `F32`, ..."""

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


Headers = Mapping[str, TensorHeader]
"""Every tensor of one or more files, by stored name."""


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one safetensors file; raises MidsightError where it is missing, damaged or quantised."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            headers = {name: TensorHeader(path, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise MidsightError(f"{path} is no whole safetensors file ({error}); download it again.") from error
    for name, header in headers.items():
        if name.endswith((".weight", ".bias")) and header.dtype not in FLOATS:
            raise MidsightError(
                f"{path} stores {name} as {header.dtype}, quantised; load it with transformers and use midsight.wrap."
            )
    return headers


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """The tensors of a model folder: of the files that its index names, else of `model.safetensors`.

    Raises MidsightError where there are no such files, one is missing or cut short, a tensor is in two of
    them, or index and files differ.
    """
    index = read_index(folder)
    names = sorted({*(index or {}).values()}) or [ONLY_WEIGHTS]
    has_only = (folder / ONLY_WEIGHTS).is_file()
    if index is None and not has_only:
        raise MidsightError(
            f"{folder} has no safetensors weights: no {ONLY_WEIGHTS} and no {INDEX}; midsight loads no other kind."
        )
    if has_only and ONLY_WEIGHTS not in names:
        raise MidsightError(
            f"{folder} has {ONLY_WEIGHTS} beside the files that {INDEX} names; remove those that are not the model."
        )
    headers: dict[str, TensorHeader] = {}
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise MidsightError(f"{folder} lacks the file {name} that its index names; download it again.")
        for tensor, header in read_header(folder / name).items():
            if tensor in headers:
                raise MidsightError(
                    f"The tensor {tensor} is in {headers[tensor].file.name} and in {name}; download the folder again."
                )
            headers[tensor] = header
    if index is not None:
        moved = [tensor for tensor in index if tensor in headers and headers[tensor].file.name != index[tensor]]
        for tensor in sorted({*index} ^ {*headers}) or moved:
            raise MidsightError(
                f"{folder / INDEX} and the files differ about the tensor {tensor}; download the folder again."
            )
    return headers


def read_index(folder: Path) -> dict[str, str] | None:
    """File name of every tensor as the folder's index says; None where it has none. Raises MidsightError."""
    path = folder / INDEX
    if not path.is_file():
        return None
    content = read_json(path)
    index = content.get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise MidsightError(f"{path} has no weight_map of tensor and file names; download it again.")
    return index


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the folder; raises MidsightError where it is missing, no JSON object, or names a key twice."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise MidsightError(f"{path.parent} has no {path.name}; give the folder of a whole model.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise MidsightError(f"{path} cannot be read ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise MidsightError(f"{path} is no JSON object; download it again.")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {twice} twice")
    return content

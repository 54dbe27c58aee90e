"""Headers of safetensors files: names, shapes and dtypes of the tensors. No weights are read."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from midsight.errors import MidsightError, ModelFileError, first_line, quoted

INDEX = "model.safetensors.index.json"
ONLY_WEIGHTS = "model.safetensors"
"""The weights of a model that has no index."""
LARGEST_TEXT = 64 * 1024**2
"""Largest size of a file that is not weights, in bytes; the largest published tokenizer.json has half of it."""
LARGEST_HEADER = 16 * 1024**2
"""Largest header of a safetensors file, in bytes: more than 100,000 tensors; published models have thousands."""
LONGEST_NAME = 240
"""Characters of a tensor's name."""
FLOATS = ("BF16", "F16", "F32", "F64")
"""Unquantised dtypes. Weights of any other dtype need a scale, which is stored elsewhere."""


@dataclass(frozen=True)
class TensorHeader:
    """One stored tensor, unread."""

    file: Path
    """The safetensors file that holds it."""
    shape: tuple[int, ...]
    """Its size along each dimension."""
    dtype: str
    """As safetensors spells it: `BF16`, `F32`, ..."""

    @property
    def parameters(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


Headers = Mapping[str, TensorHeader]
"""Every tensor of one or more files, by stored name."""


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one safetensors file; raises MidsightError if it is missing, damaged or quantised."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header would have {length / 1e6:.0f} MB")
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            headers = {name: TensorHeader(path, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a whole safetensors file ({first_line(error)})", path) from error
    for name, header in headers.items():
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise ModelFileError(f"{path} names a tensor {quoted(repr(name))}", path)
        if name.endswith((".weight", ".bias")) and header.dtype not in FLOATS:
            raise MidsightError(
                f"{path} stores {name} as {header.dtype}, quantised; {how_to_wrap('AutoModelForImageTextToText')}."
            )
    return headers


def how_to_wrap(model_class: str) -> str:
    """What to do with quantised weights, as the end of a sentence; `model_class` is transformers' class."""
    return (
        f"load it with transformers: model = {model_class}.from_pretrained(FOLDER); "
        "processor = AutoProcessor.from_pretrained(FOLDER); model = midsight.wrap(model, processor)"
    )


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """The tensors of a model folder: those of the files that its index names, else of `model.safetensors`.

    Raises MidsightError if such a file is missing or damaged, if a tensor is in two files, or if index and files
    differ.
    """
    index = read_index(folder)
    names = sorted({*(index or {}).values()}) or [ONLY_WEIGHTS]
    has_single_file = (folder / ONLY_WEIGHTS).is_file()
    if index is None and not has_single_file:
        raise MidsightError(
            f"{folder} has no safetensors weights, neither {ONLY_WEIGHTS} nor {INDEX}; give a folder that has them: "
            "midsight loads no other kind."
        )
    if has_single_file and ONLY_WEIGHTS not in names:
        raise MidsightError(
            f"{folder} has {ONLY_WEIGHTS} next to the files that {INDEX} names; remove those that are not the model."
        )
    headers: dict[str, TensorHeader] = {}
    for name in names:
        is_name = Path(name).name == name and len(name.encode(errors="replace")) <= LONGEST_NAME
        if not is_name or not (folder / name).is_file():
            raise ModelFileError(
                f"{folder} lacks the file {quoted(name)} that its index names", folder / (name if is_name else INDEX)
            )
        for tensor, header in read_header(folder / name).items():
            if tensor in headers:
                raise ModelFileError(f"The tensor {tensor} is in {headers[tensor].file.name} and in {name}")
            headers[tensor] = header
    if index is not None:
        moved = [tensor for tensor in index if tensor in headers and headers[tensor].file.name != index[tensor]]
        for tensor in sorted({*index} ^ {*headers}) or moved:
            raise ModelFileError(f"{folder / INDEX} and the files differ about the tensor {quoted(tensor)}")
    return headers


def read_index(folder: Path) -> dict[str, str] | None:
    """File name of every tensor, from the folder's index; None if it has no index. Raises MidsightError."""
    path = folder / INDEX
    if not path.is_file():
        return None
    content = read_json(path)
    index = content.get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise ModelFileError(f"{path} has no weight_map from tensor names to file names", path)
    return index


def count_layers(folder: Path) -> int | None:
    """Number of decoder layers that config.json says; None if it cannot be read, or is not in this folder."""
    try:
        config = read_json(folder / "config.json")
    except MidsightError:
        return None
    text = config.get("text_config")
    layers = (text if isinstance(text, dict) else config).get("num_hidden_layers")
    return layers if type(layers) is int and layers > 0 else None


def read_text(path: Path) -> str:
    """A file that is not weights; raises OSError or ValueError for one that is not regular, too large, or not UTF-8."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    if status.st_size > LARGEST_TEXT:
        raise ValueError(f"it is larger than {LARGEST_TEXT / 1e6:.0f} MB")
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the folder; raises MidsightError if it is missing, not a JSON object, or names a key twice."""
    try:
        content = json.loads(read_text(path), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise MidsightError(f"{path.parent} has no {path.name}; give the folder of a whole model.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read ({first_line(error)})", path) from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} is not a JSON object", path)
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"it names {name} twice")
        content[name] = value
    return content

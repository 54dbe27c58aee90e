"""What tells one model folder from another, cheaply enough for every start."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError

SAMPLED_BYTES = 64 * 1024
LARGEST_HEADER_BYTES = 100_000_000


def read_safetensors_header(path: Path) -> tuple[bytes, int]:
    """The header of a safetensors file and the offset of its data; raises MidsightError when it is cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, LARGEST_HEADER_BYTES):
            raise MidsightError(f"{path} is no whole safetensors file; download it again.")
        header = file.read(length)
    end = max((t["data_offsets"][1] for name, t in json.loads(header).items() if name != "__metadata__"), default=0)
    if 8 + length + end != size:
        raise MidsightError(f"{path} has {size} bytes where its header promises {8 + length + end}; download it again.")
    return header, 8 + length


def parameter_bytes(folder: Path) -> dict[str, int]:
    """Bytes of the tensors in a folder's safetensors files, by stored dtype (`BF16`, `F32`, ...)."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, _ = read_safetensors_header(path)
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                start, stop = tensor["data_offsets"]
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + stop - start
    return sizes


def fingerprint(folder: Path) -> str:
    """SHA-256 over the files that decide a model's numbers, hex.

    Of safetensors files: name, size, header, and 64 KiB at the start, middle and end of the data, so
    that weights trained further differ without being read whole. Of JSON, text and template files:
    name and content.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix not in {".safetensors", ".json", ".txt", ".jinja"} or not path.is_file():
            continue
        digest.update(f"{path.relative_to(folder).as_posix()}:{path.stat().st_size}\n".encode())
        if path.suffix != ".safetensors":
            digest.update(path.read_bytes())
            continue
        header, data_start = read_safetensors_header(path)
        digest.update(header)
        data_end = path.stat().st_size
        with path.open("rb") as file:
            for offset in (data_start, (data_start + data_end) // 2, max(data_start, data_end - SAMPLED_BYTES)):
                file.seek(offset)
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def weights_fingerprint(hf_model: Any) -> str:
    """SHA-256 over the names, shapes and 64 values of every parameter of a model in memory, hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(hf_model.named_parameters()):
        values = tensor.detach().flatten()
        spread = values[:: max(1, len(values) // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}:{tuple(tensor.shape)}\n".encode() + spread.tobytes())
    return digest.hexdigest()

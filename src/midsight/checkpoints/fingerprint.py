"""The fingerprint of a model: it differs between models, and is quick enough to compute at every start."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from midsight.checkpoints.headers import Headers
from midsight.checkpoints.hub import TEXTS, VOCABULARY
from midsight.errors import MidsightError

SAMPLED_BYTES = 64 * 1024
"""Size of each of the three windows that are read from a file's data."""


def decisive_files(folder: Path, headers: Headers) -> list[Path]:
    """The files that decide a model's numbers: its tensors, and the config and tokenizer files next to them."""
    weights = {header.file for header in headers.values()}
    texts = {inside / name for inside in {folder, *(w.parent for w in weights)} for name in TEXTS}
    if not (folder / "tokenizer.json").is_file():
        texts |= {folder / name for name in VOCABULARY}
    return sorted(weights | {path for path in texts if path.is_file()})


def fingerprint(folder: Path, headers: Headers) -> str:
    """SHA-256 over the files that decide a model's numbers, hex.

    A safetensors file counts with its name, size, header, and 64 KiB at the start, middle and end of its data. So
    weights that were trained further differ, and no file is read whole. A small file counts with its name, size and
    content.
    """
    digest = hashlib.sha256()
    for path in decisive_files(folder, headers):
        digest.update(f"{path.relative_to(folder).as_posix()}:{path.stat().st_size}\n".encode())
        if path.suffix != ".safetensors":
            digest.update(path.read_bytes())
            continue
        with path.open("rb") as file:
            data_start = 8 + int.from_bytes(file.read(8), "little")
            data_end = path.stat().st_size
            file.seek(0)
            digest.update(file.read(data_start))
            for offset in (data_start, (data_start + data_end) // 2, max(data_start, data_end - SAMPLED_BYTES)):
                file.seek(offset)
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def weights_fingerprint(hf_model: Any) -> str:
    """SHA-256 over the names, shapes and up to 64 values of every parameter of a model in memory, hex.

    A tied parameter counts once, also where accelerate has made two of it, but one that was given values of its own
    counts. Raises MidsightError for a parameter without values.
    """
    read = {name: _sampled(hf_model, name) for name, _ in sorted(hf_model.named_parameters())}
    tied = getattr(hf_model, "all_tied_weights_keys", {})
    digest = hashlib.sha256()
    for name, sampled in read.items():
        if name not in tied or sampled != read.get(tied[name]):
            digest.update(f"{name}:".encode() + sampled)
    return digest.hexdigest()


def _sampled(hf_model: Any, name: str) -> bytes:
    """Shape and up to 64 values of a parameter."""
    from midsight.families.placement import stored_tensor  # imports torch

    owner, _, attribute = name.rpartition(".")
    tensor = stored_tensor(hf_model.get_submodule(owner), attribute)
    if tensor is None:
        raise MidsightError(f"The model has no values for {name}; load its weights first.")
    values = tensor.detach().flatten()
    spread = values[:: max(1, len(values) // 64)][:64].float().cpu().numpy()
    return f"{tuple(tensor.shape)}\n".encode() + spread.tobytes()

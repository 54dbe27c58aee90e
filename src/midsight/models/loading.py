"""Loading a model folder: what is in it, at which precision, where, and with its LoRA."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import torch
from torch import nn

from midsight.errors import MidsightError
from midsight.models.adapter import Adapter, submodule
from midsight.models.catalogue import find_adapter, open_checkpoint
from midsight.models.checkpoint import LoraMode
from midsight.models.fingerprint import fingerprint, parameter_bytes, weights_fingerprint
from midsight.models.hub import find_model_folder
from midsight.models.quiet import quiet_transformers

Lora = Literal["auto", "merged", "unmerged", "off"]
"""The LoRA that image input needs: added to the weights, applied beside them, or left out (another model's
numbers). `auto` merges in float32 and keeps it beside the weights in other dtypes, where rounding the
merged weights once more takes the numbers farther from float32."""

BYTES_OF_STORED_DTYPE = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
SPARE_MEMORY = 0.8
"""Share of the free memory that float32 weights may take before the checkpoint's dtype is used instead."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with everything that decides its numbers."""

    hf_model: Any
    """transformers' model (an nn.Module with config and generation_config), in eval mode, mended."""
    tokenizer: Any
    """transformers' tokenizer."""
    image_processor: Any
    """transformers' image processor."""
    adapter: Adapter
    """The family's declarations."""
    name: str
    """Folder or hub id as it was given."""
    revision: str | None
    """Commit of the hub, where the folder came from one."""
    layout: str
    """`transformers`, `published phi4mm`, or `in memory`."""
    fingerprint: str
    """Of the folder's files, or of the weights of a model that was wrapped."""
    dtype: torch.dtype
    """Of the decoder's weights."""
    device: torch.device
    """Where the weights are."""
    attention: str
    """transformers' name of the attention kernel."""
    lora: str
    """`merged`, `unmerged` or `off`; `as given` for a model that was wrapped."""
    mends: tuple[str, ...]
    """What was corrected at load, a sentence each."""
    notes: tuple[str, ...]
    """What a user should know about the load, a sentence each."""

    @property
    def config(self) -> Any:
        """Transformers' config of the whole model."""
        return self.hf_model.config

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.config.get_text_config().num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width of the decoder's hidden states."""
        return self.config.get_text_config().hidden_size

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer, from the folder's generation config."""
        eos = self.hf_model.generation_config.eos_token_id
        return tuple(sorted(eos if isinstance(eos, list) else [eos]))

    @property
    def pad_id(self) -> int:
        """Token id that fills rows of a batch."""
        return self.tokenizer.pad_token_id


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora = "auto",
) -> LoadedModel:
    """Loads a model folder or hub id, in transformers' layout or as Phi-4-multimodal is published.

    revision: branch, tag or commit of a hub id.
    dtype: auto, float32, bfloat16 or float16; auto is the checkpoint's on a GPU, and float32 on CPU
    where it fits in memory. device: auto, cpu, mps, cuda or cuda:N. lora: auto, merged, unmerged or
    off. Raises MidsightError.
    """
    if lora not in get_args(Lora):
        raise MidsightError(f"--lora {lora!r} is unknown; give {' or '.join(get_args(Lora))}.")
    found = find_model_folder(source, revision=revision)
    folder = found.path
    target = choose_device(device)
    with quiet_transformers():
        checkpoint = open_checkpoint(folder)
        torch_dtype, notes = choose_dtype(dtype, target, checkpoint.config, folder)
        mode = choose_lora(lora, torch_dtype) if checkpoint.has_lora else "off"
        hf_model = checkpoint.load_weights(torch_dtype, target, mode).eval()
        tokenizer = checkpoint.load_tokenizer()
        image_processor = checkpoint.load_image_processor()
    return LoadedModel(
        hf_model=hf_model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        adapter=checkpoint.adapter,
        name=str(source),
        revision=found.revision,
        layout=checkpoint.layout,
        fingerprint=fingerprint(folder),
        dtype=torch_dtype,
        device=target,
        attention=hf_model.config._attn_implementation,
        lora=mode,
        mends=checkpoint.adapter.mends(hf_model),
        notes=notes,
    )


def wrap_model(hf_model: nn.Module, processor: Any) -> LoadedModel:
    """A model of a known family that is loaded already, with its weights as they are.

    The family's mends are applied to `hf_model` itself. Raises MidsightError for an unknown family.
    """
    adapter = find_adapter([type(hf_model).__name__], f"The model of class {type(hf_model).__name__}")
    hf_model.eval()
    embedding: Any = submodule(hf_model, adapter.lm_head).weight
    config: Any = hf_model.config
    return LoadedModel(
        hf_model=hf_model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        adapter=adapter,
        name=config.name_or_path or type(hf_model).__name__,
        revision=None,
        layout="in memory",
        fingerprint=weights_fingerprint(hf_model),
        dtype=embedding.dtype,
        device=embedding.device,
        attention=config._attn_implementation,
        lora="as given",
        mends=adapter.mends(hf_model),
        notes=(),
    )


def read_stop_ids(folder: Path, config: Any) -> tuple[int, ...]:
    """Token ids that end an answer: of the folder's generation config, else of its config."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    eos = config.get_text_config().eos_token_id if found is None else found
    return tuple(sorted(eos if isinstance(eos, list) else [eos]))


def choose_device(device: str) -> torch.device:
    """The device that `device` names; auto is the first CUDA device, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise MidsightError(f"--device {device!r} is unknown; give auto, cpu, mps, cuda or cuda:N.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MidsightError(f"--device {device} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise MidsightError("--device mps is not there: torch sees no Apple GPU.")
    return chosen


def choose_dtype(dtype: str, device: torch.device, config: Any, folder: Path) -> tuple[torch.dtype, tuple[str, ...]]:
    """The dtype of the weights in memory, and what to tell the user about it."""
    if dtype != "auto":
        if dtype not in {"float32", "bfloat16", "float16"}:
            raise MidsightError(f"--dtype {dtype!r} is unknown; give auto, float32, bfloat16 or float16.")
        return getattr(torch, dtype), ()
    stored = config.dtype or torch.float32
    if device.type != "cpu":
        return stored, ()
    needed = sum(4 * size // BYTES_OF_STORED_DTYPE.get(name, 4) for name, size in parameter_bytes(folder).items())
    free = psutil.virtual_memory().available
    if needed <= SPARE_MEMORY * free:
        return torch.float32, ()
    note = (
        f"The weights need {needed / 1e9:.1f} GB in float32 and {free / 1e9:.1f} GB are free, "
        f"so they are loaded in {str(stored).removeprefix('torch.')}."
    )
    return stored, (note,)


def choose_lora(lora: Lora, dtype: torch.dtype) -> LoraMode:
    """How the LoRA is applied: what was asked for, or what stays closest to float32 in this dtype."""
    if lora != "auto":
        return lora
    return "merged" if dtype == torch.float32 else "unmerged"

"""The published weights into transformers' class: one tensor at a time, straight to device and dtype."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, Phi4MultimodalConfig, Phi4MultimodalForCausalLM

from midsight.errors import MidsightError
from midsight.models.checkpoint import LoraMode
from midsight.models.fingerprint import read_safetensors_header
from midsight.models.native import merge_lora
from midsight.models.phi4mm.config import LoraScale, Shapes, lora_scale, native_config
from midsight.models.phi4mm.tensors import Accounts, account_for

INDEX = "model.safetensors.index.json"
LORA_TARGETS = r"model\.layers\.\d+\.(self_attn\.(qkv_proj|o_proj)|mlp\.(gate_up_proj|down_proj))"
AUDIO_EMBED = "model.embed_tokens_extend.audio_embed"


@dataclass(frozen=True)
class PublishedFolder:
    """What the headers of a published folder say, no weights read."""

    config: Phi4MultimodalConfig
    """For transformers' class."""
    lora: LoraScale
    """Of the vision LoRA."""
    files: Mapping[str, Path]
    """File of every tensor, by published name."""
    shapes: Shapes
    """Shape of every tensor, by published name."""
    accounts: Accounts
    """Where every tensor goes; the audio tower is left out."""


def read_published(folder: Path) -> PublishedFolder:
    """Reads config and tensor headers and accounts for every tensor. Raises MidsightError."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files, shapes = read_headers(folder)
    config = native_config(raw, shapes)
    lora = lora_scale(raw)
    with torch.device("meta"):
        state = Phi4MultimodalForCausalLM(config).state_dict()
    native = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return PublishedFolder(config, lora, files, shapes, account_for(shapes, native, rank=lora.rank))


def read_headers(folder: Path) -> tuple[dict[str, Path], dict[str, tuple[int, ...]]]:
    """File and shape of every tensor, from the headers of the safetensors files and held against the index.

    Raises MidsightError where a file is missing or cut short, or where index and headers differ.
    """
    index_path = folder / INDEX
    index: dict[str, str] | None = None
    if index_path.is_file():
        index = json.loads(index_path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)["weight_map"]
    names = sorted(set(index.values())) if index is not None else sorted(p.name for p in folder.glob("*.safetensors"))
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise MidsightError(f"{folder} lacks the file {name} that its index names; download it again.")
        for tensor, entry in json.loads(read_safetensors_header(path)[0]).items():
            if tensor == "__metadata__":
                continue
            if tensor in files:
                raise MidsightError(
                    f"The tensor {tensor} is in {files[tensor].name} and in {name}; download the folder again."
                )
            files[tensor], shapes[tensor] = path, tuple(entry["shape"])
    if index is not None:
        for tensor in sorted({*index} ^ {*files}) or [t for t in index if files[t].name != index[t]]:
            raise MidsightError(
                f"{index_path} and the files differ about the tensor {tensor}; download the folder again."
            )
    return files, shapes


def load_published(folder: Path, *, dtype: torch.dtype, device: torch.device, lora: LoraMode) -> Any:
    """Transformers' Phi4MultimodalForCausalLM with the published weights; the audio tower is left out.

    Tensors are read one at a time, so host memory holds the model (none of it, on a GPU) and one
    weight with its LoRA in float32. Raises MidsightError.
    """
    published = read_published(folder)
    with torch.device("meta"):
        model: Any = Phi4MultimodalForCausalLM(published.config)
    model.set_submodule(AUDIO_EMBED, nn.Identity())
    if lora == "unmerged":
        add_empty_lora(model, published.lora)
    for name, tensor in read_weights(published, dtype=dtype, device=device, lora=lora):
        place(model, name, tensor)
    model.tie_weights()
    # its frequencies are buffers that no file holds
    model.model.rotary_emb = type(model.model.rotary_emb)(published.config).to(device)
    left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if left:
        raise MidsightError(f"{folder} filled all tensors but {len(left)}, {left[0]} the first; download it again.")
    model.config.dtype = dtype
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def read_weights(
    published: PublishedFolder, *, dtype: torch.dtype, device: torch.device, lora: LoraMode
) -> Iterator[tuple[str, Tensor]]:
    """Native name and tensor of everything that is loaded, file by file; a merged LoRA is rounded once."""
    accounts = published.accounts
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}

        def read(name: str) -> Tensor:
            path = published.files[name]
            if path not in opened:
                opened[path] = stack.enter_context(safe_open(path, framework="pt"))
            return opened[path].get_tensor(name)

        try:
            for target, source in sorted(accounts.loaded.items(), key=lambda item: str(published.files[item[1]])):
                pair = accounts.vision_lora.get(target)
                if pair is None or lora == "off":
                    yield target, read(source).to(device, dtype)
                elif lora == "merged":
                    a, b = (read(name).to(device) for name in (pair.a, pair.b))
                    yield target, merge_lora(read(source).to(device), a, b, published.lora.scale).to(dtype)
                else:
                    module = target.removesuffix(".weight")
                    yield f"{module}.base_layer.weight", read(source).to(device, dtype)
                    yield f"{module}.lora_A.vision.weight", read(pair.a).to(device, dtype)
                    yield f"{module}.lora_B.vision.weight", read(pair.b).to(device, dtype)
        except SafetensorError as error:
            raise MidsightError(f"A safetensors file cannot be read ({error}); download the folder again.") from error


def add_empty_lora(model: Any, lora: LoraScale) -> None:
    """PEFT's layers beside the decoder's weights, under the names the published factors have."""
    config = LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules=LORA_TARGETS, lora_dropout=0.0)
    model.add_adapter(config, adapter_name="vision")
    model.set_adapter("vision")


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor where the model has a parameter or buffer of that name."""
    owner_path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_path)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise MidsightError(f"{INDEX} names the tensor {name} twice; download it again.")
        seen[name] = value
    return seen

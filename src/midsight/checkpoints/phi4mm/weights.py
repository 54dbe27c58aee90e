"""Loading the published weights into transformers' class, one tensor at a time, directly to device and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

from midsight.checkpoints.checkpoint import LoadChoice
from midsight.checkpoints.class_parts import without_modules
from midsight.checkpoints.headers import Headers, read_headers, read_json
from midsight.checkpoints.lora import merge_lora
from midsight.checkpoints.phi4mm.config import LoraScale, Shapes, lora_scale, native_config
from midsight.checkpoints.phi4mm.tensors import Accounts, account_for
from midsight.checkpoints.reading import tensor_reader
from midsight.errors import MidsightError, ModelFileError, first_line
from midsight.families.phi4_multimodal import AUDIO_EMBED

LORA_TARGETS = r"model\.layers\.\d+\.(self_attn\.(qkv_proj|o_proj)|mlp\.(gate_up_proj|down_proj))"


@dataclass(frozen=True)
class PublishedFolder:
    """Config and headers of a published folder; its weights are not read."""

    config: Phi4MultimodalConfig
    """The config that transformers' class takes."""
    lora: LoraScale
    """The scale of the vision LoRA."""
    headers: Headers
    """Every stored tensor, by published name."""
    native: Shapes
    """Shape of every tensor of transformers' class, by native name."""

    def account(self, *, audio: bool = False) -> Accounts:
        """What is done with every tensor; raises MidsightError if one is missing, extra or misshapen."""
        return account_for(self.shapes, self.native, rank=self.lora.rank, audio=audio)

    @property
    def shapes(self) -> Shapes:
        """Shape of every stored tensor, by published name."""
        return {name: header.shape for name, header in self.headers.items()}


def read_published(folder: Path) -> PublishedFolder:
    """Reads config and tensor headers. Raises MidsightError."""
    raw = read_json(folder / "config.json")
    headers = read_headers(folder)
    config = native_config(raw, {name: header.shape for name, header in headers.items()})
    lora = lora_scale(raw)
    try:
        with torch.device("meta"):
            state = Phi4MultimodalForCausalLM(config).state_dict()
    except Exception as error:  # each value is valid, but transformers may refuse the combination
        raise MidsightError(
            f"{folder / 'config.json'} does not describe a model ({first_line(error)}); correct config.json."
        ) from error
    native = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return PublishedFolder(config, lora, headers, native)


def load_published(folder: Path, published: PublishedFolder, choice: LoadChoice) -> Any:
    """Transformers' Phi4MultimodalForCausalLM with the weights of a published folder.

    Tensors are read one at a time: host memory holds the model, unless it is on a GPU, and one weight with its LoRA
    in float32. Raises MidsightError.
    """
    unread = () if choice.unused else (AUDIO_EMBED,)
    with torch.device("meta"):
        model: Any = without_modules(Phi4MultimodalForCausalLM, unread)(published.config)
    if choice.lora == "unmerged":
        add_empty_lora(model, published.lora)
    for name, tensor in read_weights(published, choice):
        set_tensor(model, name, tensor)
    model.tie_weights()
    # its frequencies are buffers, which no file stores
    model.model.rotary_emb = type(model.model.rotary_emb)(published.config).to(choice.device)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise ModelFileError(f"{folder} has no values for {len(left)} tensors, the first is {left[0]}")
    model.config.dtype = choice.dtype
    return model


def read_weights(published: PublishedFolder, choice: LoadChoice) -> Iterator[tuple[str, Tensor]]:
    """Native name and tensor of everything that is loaded, file by file. A merged weight is rounded once."""
    accounts, headers = published.account(audio=choice.unused), published.headers
    device, dtype = choice.device, choice.dtype
    by_file = sorted(accounts.loaded.items(), key=lambda item: str(headers[item[1]].file))
    with tensor_reader(headers) as read:
        for target, source in by_file:
            pair = accounts.vision_lora.get(target)
            if pair is None or choice.lora == "off":
                yield target, read(source).to(device, dtype)
            elif choice.lora == "merged":
                weight, a, b = (read(name).to(device) for name in (source, pair.a, pair.b))
                yield target, merge_lora(weight, a, b, published.lora.scale).to(dtype)
            else:
                module = target.removesuffix(".weight")
                yield f"{module}.base_layer.weight", read(source).to(device, dtype)
                yield f"{module}.lora_A.vision.weight", read(pair.a).to(device, dtype)
                yield f"{module}.lora_B.vision.weight", read(pair.b).to(device, dtype)


def add_empty_lora(model: Any, lora: LoraScale) -> None:
    """Adds PEFT's layers beside the decoder's weights, under the names of the published factors."""
    from peft import LoraConfig  # takes seconds to import, and is needed only here

    alpha: Any = lora.alpha  # PEFT annotates int, and computes with float too
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=LORA_TARGETS, lora_dropout=0.0)
    model.add_adapter(config, adapter_name="vision")
    model.set_adapter("vision")


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes a tensor the parameter or buffer of that name."""
    owner_path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_path)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))

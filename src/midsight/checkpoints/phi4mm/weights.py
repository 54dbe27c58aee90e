"""Loading the published weights into transformers' class, one tensor at a time, directly to device and dtype."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

from midsight.checkpoints.bounds import validate_sizes
from midsight.checkpoints.checkpoint import LoadChoice
from midsight.checkpoints.class_parts import without_modules
from midsight.checkpoints.headers import Headers, read_headers, read_json
from midsight.checkpoints.lora import Lora, apply_loras
from midsight.checkpoints.peft_fit import fit_lora
from midsight.checkpoints.peft_folder import PeftFolder
from midsight.checkpoints.phi4mm.config import LoraScale, Shapes, lora_scale, native_config, normalise
from midsight.checkpoints.phi4mm.tensors import Accounts, account_for
from midsight.checkpoints.reading import tensor_reader
from midsight.errors import MidsightError, ModelFileError, counted, first_line
from midsight.families.phi4_multimodal import AUDIO_EMBED, FAMILY

TIED = {"lm_head.weight": "model.embed_tokens.weight"}
"""A weight that is not stored, and the one that it is."""


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
    notes: tuple[str, ...]
    """What a user should know about the folder, one sentence each."""

    def account(self, *, audio: bool = False) -> Accounts:
        """What is done with every tensor; raises MidsightError if one is missing, extra or misshapen."""
        return account_for(self.shapes, self.native, lora=self.lora, audio=audio)

    @property
    def shapes(self) -> Shapes:
        """Shape of every stored tensor, by published name."""
        return {name: header.shape for name, header in self.headers.items()}


def read_published(folder: Path) -> PublishedFolder:
    """Reads config and tensor headers. Raises MidsightError."""
    stored = read_json(folder / "config.json")
    if stored.get("quantization_config") is not None:
        raise MidsightError(
            f"{folder / 'config.json'} has a quantization_config, and midsight loads no quantised weights of this "
            "format; use the folder without quantisation."
        )
    raw, notes = normalise(stored)
    headers = read_headers(folder)
    validate_sizes(raw, headers, folder / "config.json")
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
    return PublishedFolder(config, lora, headers, native, notes)


def fit_adapter(published: PublishedFolder, adapter: PeftFolder | None) -> None:
    """Raises MidsightError if an adapter does not fit the model; reads headers only."""
    if adapter is not None:
        with torch.device("meta"):
            fit_lora(adapter, Phi4MultimodalForCausalLM(published.config), FAMILY)


def load_published(
    folder: Path, published: PublishedFolder, choice: LoadChoice, adapter: PeftFolder | None = None
) -> Any:
    """Transformers' Phi4MultimodalForCausalLM with the weights of a published folder, and an adapter of the user's.

    Tensors are read one at a time: host memory holds the model, unless it is on a GPU, and one weight with its LoRA
    in float32. Raises MidsightError.
    """
    fit_adapter(published, adapter)  # before memory is taken
    unread = () if choice.unused else (AUDIO_EMBED,)
    with torch.device("meta"):
        model: Any = without_modules(Phi4MultimodalForCausalLM, unread)(published.config)
    accounts = published.account(audio=choice.unused)
    by_file = sorted(accounts.loaded.items(), key=lambda item: str(published.headers[item[1]].file))
    with tensor_reader(published.headers) as read:
        for name, stored in by_file:
            set_tensor(model, name, read(stored).to(choice.device, choice.dtype))
        model.tie_weights()
        if choice.lora in ("merged", "unmerged"):
            loras = [Lora(published.headers, accounts.vision_lora)]
            apply_loras(
                model,
                [*loras, fit_lora(adapter, model, FAMILY)] if adapter else loras,
                merged=choice.lora == "merged",
                read_base=lambda name: read(accounts.loaded.get(name) or accounts.loaded[TIED[name]]),
            )
    # its frequencies are buffers, which no file stores
    model.model.rotary_emb = type(model.model.rotary_emb)(published.config).to(choice.device)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise ModelFileError(f"{folder} has no values for {counted(len(left), 'tensor')}, the first is {left[0]}")
    model.config.dtype = choice.dtype
    return model


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes a tensor the parameter or buffer of that name."""
    owner_path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_path)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))

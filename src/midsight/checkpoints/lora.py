"""LoRAs beside the weights: added to them, or computed beside them.

PEFT is not used: transformers' own integration accepts only some of its versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from midsight.checkpoints.headers import Headers
from midsight.checkpoints.reading import tensor_reader


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one weight's LoRA, unread."""

    a: str
    """Stored name of A, [rank, columns of the weight]."""
    b: str
    """Stored name of B, [rows of the weight, rank]."""
    scale: float
    """The factor of B A."""


@dataclass(frozen=True)
class Lora:
    """A LoRA that fits a model; its tensors are not read."""

    headers: Headers
    """Its stored tensors, by stored name."""
    pairs: Mapping[str, LoraPair]
    """From the path of a linear layer to its factors."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """From a parameter of the model to the stored tensor that takes its place."""


class LoraLinear(nn.Module):
    """A linear layer with LoRAs beside its weight: W x + bias + the sum of scale B A x."""

    def __init__(self, base_layer: nn.Module, factors: Sequence[tuple[Tensor, Tensor, float]]) -> None:
        """`factors` are A [rank, columns], B [rows, rank] and scale of each LoRA, in the layer's dtype."""
        super().__init__()
        self.base_layer = base_layer
        # modules of their own, so that accelerate can bring their weights when they are called
        self.lora_A = nn.ModuleList(as_linear(a) for a, _, _ in factors)
        self.lora_B = nn.ModuleList(as_linear(b) for _, b, _ in factors)
        self.scales = tuple(scale for _, _, scale in factors)
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., columns]; returns [..., rows]."""
        output = self.base_layer(x)
        if not self.is_on:
            return output
        for a, b, scale in zip(self.lora_A, self.lora_B, self.scales, strict=True):
            output = output + b(a(x)) * scale
        return output


def as_linear(weight: Tensor) -> nn.Linear:
    """A linear layer without bias that has this weight, [rows, columns]."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


@contextmanager
def loras_off(hf_model: nn.Module) -> Iterator[None]:
    """Leaves the LoRAs beside the weights out for a while."""
    layers = [module for module in hf_model.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        layer.is_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_on = True


def merge(weight: Tensor, factors: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """W + the sum of scale B A in float32, for W [rows, columns], A [rank, columns] and B [rows, rank]."""
    merged = weight.float()
    for a, b, scale in factors:
        merged = torch.addmm(merged, b.float(), a.float(), alpha=scale)
    return merged


@torch.no_grad()
def apply_loras(
    hf_model: Any, loras: Sequence[Lora], *, merged: bool, read_base: Callable[[str], Tensor] | None
) -> None:
    """Adds LoRAs to a loaded model.

    Args:
        hf_model: transformers' model with its own weights.
        loras: They act together.
        merged: Add them to the weights; else compute them beside the weights.
        read_base: Reads a parameter of the model from its file, in the stored dtype, because the one in memory is
            rounded to the model's dtype; None if nothing is merged.
    """
    with ExitStack() as stack:
        readers = [(lora, stack.enter_context(tensor_reader(lora.headers))) for lora in loras]
        for lora, read in readers:
            for path, name in lora.replaced.items():
                set_parameter(hf_model, path, read(name))
        replaced = {path: (read, name) for lora, read in readers for path, name in lora.replaced.items()}
        for path in sorted({path for lora in loras for path in lora.pairs}):
            layer = hf_model.get_submodule(path)
            weight = layer.weight
            pairs = [(read, lora.pairs[path]) for lora, read in readers if path in lora.pairs]
            factors = [(read(p.a).to(weight.device), read(p.b).to(weight.device), p.scale) for read, p in pairs]
            if merged and read_base is not None:
                read, name = replaced.get(f"{path}.weight", (read_base, f"{path}.weight"))
                full = merge(read(name).to(weight.device), factors)
                # a new parameter: a weight that is tied to another one must not change both
                layer.weight = nn.Parameter(full.to(weight.dtype), requires_grad=False)
            else:
                beside = [(a.to(weight.dtype), b.to(weight.dtype), scale) for a, b, scale in factors]
                hf_model.set_submodule(path, LoraLinear(layer, beside))


def set_parameter(hf_model: nn.Module, path: str, values: Tensor) -> None:
    """Puts new values in the place of a parameter, in its dtype and on its device, and not in that of a tied one."""
    owner, _, attribute = path.rpartition(".")
    module = hf_model.get_submodule(owner)
    old = getattr(module, attribute)
    setattr(module, attribute, nn.Parameter(values.to(old.device, old.dtype), requires_grad=False))

"""Where modules compute and where their weights are, in models that accelerate splits over devices.

A weight that accelerate keeps in main memory or on disk is on the meta device outside its module's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate's on a module; accelerate need not be installed."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: what the hooks say, else where its first parameter is."""
    for part in module.modules():
        for hook in hooks_of(part):
            if getattr(hook, "execution_device", None) is not None:
                return torch.device(hook.execution_device)
    return next(module.parameters()).device


def stored_tensor(module: nn.Module, name: str) -> Tensor | None:
    """A module's own parameter or buffer, wherever its values are; None if they are nowhere."""
    tensor = getattr(module, name)
    if not tensor.is_meta:
        return tensor
    maps = (getattr(hook, "weights_map", None) for hook in hooks_of(module))
    return next((weights[name] for weights in maps if weights is not None), None)

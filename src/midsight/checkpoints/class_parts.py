"""transformers' model classes without the modules whose weights are not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def without_modules(architecture: type[nn.Module], paths: Sequence[str]) -> Any:
    """A subclass with an empty module at each path where it has one, so that those tensors are never read."""

    def init(self: Any, config: Any) -> None:
        architecture.__init__(self, config)
        for path in paths:
            parent, _, name = path.rpartition(".")
            if getattr(self.get_submodule(parent), name) is not None:
                self.set_submodule(path, nn.Identity())

    # transformers renames the tensors of older checkpoints only for classes of its own modules
    members = {"__init__": init, "__module__": architecture.__module__}
    return type(architecture.__name__, (architecture,), members)

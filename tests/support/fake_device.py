"""A stand-in for a GPU: tensors that say they are on cuda:0, compute on the CPU, and refuse what CUDA refuses.

Synchronisations are counted: every time the host waits for a value of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda:0")
COPIES = {"_to_copy", "to", "copy_"}
TAKE_HOST_TENSORS = COPIES | {
    "_index_put_impl_",
    "_local_scalar_dense",
    "detach",
    "index",
    "index_put",
    "index_put_",
    "is_same_size",
    "lift_fresh",
}
"""CUDA takes tensors of the host in copies, as scalars and as indices, nowhere else."""
READ_BY_HOST = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "_unique", "_unique2"}
"""The host waits for their result, or for its size."""


@dataclass
class Synchronisations:
    """How often the host has waited for the device."""

    count: int = 0


class OnDevice(Tensor):
    """A tensor that says it is on cuda:0, around one on the CPU."""

    cpu_tensor: Tensor
    synchronisations: Synchronisations

    @staticmethod
    def __new__(cls, cpu_tensor: Tensor, synchronisations: Synchronisations) -> OnDevice:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            cpu_tensor.size(),
            strides=cpu_tensor.stride(),
            storage_offset=cpu_tensor.storage_offset(),
            dtype=cpu_tensor.dtype,
            device=DEVICE,
            requires_grad=cpu_tensor.requires_grad,
        )
        made.cpu_tensor, made.synchronisations = cpu_tensor, synchronisations
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.cpu_tensor})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.tolist:
            args[0].synchronisations.count += 1
            return args[0].cpu_tensor.tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(map(as_index, indices)), *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice))
        return run(func, args, kwargs or {}, first.synchronisations)


def as_index(index: Any) -> Any:
    """Lists as tensors; with lists torch would start CUDA."""
    return torch.tensor([*index], dtype=torch.int64) if isinstance(index, list | range) else index


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], synchronisations: Synchronisations) -> Any:
    """One operation, on the CPU; raises RuntimeError if it mixes devices where CUDA does not."""
    name = func._schema.name.partition("::")[2]
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
    of_host = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
    if on_device and of_host and name not in TAKE_HOST_TENSORS:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu ({func}).")
    stays = result_is_on_device(name, args, leaves, on_device)
    reads = name in READ_BY_HOST or (name == "index" and any(t.dtype == torch.bool for t in tensors[1:]))
    if on_device and (reads or (name in COPIES and not stays)):
        synchronisations.count += 1

    def on_host(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value.cpu_tensor if isinstance(value, OnDevice) else value

    if name == "histc" and on_device:  # CUDA counts integers too
        args = (args[0].cpu_tensor.float(), *args[1:])
    with no_dispatch():
        made = func(*tree_map(on_host, args), **tree_map(on_host, {**kwargs, **never_pinned(kwargs)}))
    if func._schema.is_mutable:  # the object that was changed comes back
        changed = args[0] if args else next(iter(kwargs.values()))
        return changed if isinstance(changed, Tensor) else None
    return tree_map(lambda value: OnDevice(value, synchronisations) if stays and is_plain(value) else value, made)


def result_is_on_device(name: str, args: Sequence[Any], leaves: Sequence[Any], on_device: bool) -> bool:
    """Where the result of an operation is: on the device that is named, or that of a tensor that it is made like."""
    if name == "copy_" or (name == "to" and len(args) > 1 and isinstance(args[1], Tensor)):
        return isinstance(args[0 if name == "copy_" else 1], OnDevice)
    named = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    return named[-1].type == "cuda" if named else on_device


def never_pinned(kwargs: Mapping[str, Any]) -> dict[str, bool]:
    """Pinned memory needs CUDA."""
    return {"pin_memory": False} if kwargs.get("pin_memory") else {}


def is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, OnDevice)


class FakeDevice(TorchDispatchMode):
    """Every operation goes through `run`."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # then torch does not start CUDA

    def __init__(self, synchronisations: Synchronisations) -> None:
        super().__init__()
        self.synchronisations = synchronisations

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {}, self.synchronisations)


class MakeThenMove(TorchFunctionMode):
    """`torch.tensor` and its like start CUDA before any operation runs: they make on the CPU, and then move."""

    MAKERS: tuple[Callable[..., Tensor], ...] = (torch.tensor, torch.as_tensor, torch.asarray)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.MAKERS and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


@contextmanager
def fake_device() -> Iterator[Synchronisations]:
    """Inside, `cuda` is a device that tensors and modules can be moved to."""
    counted = Synchronisations()
    torch._C._ensureCUDADeviceGuardSet()  # pyright: ignore[reportAttributeAccessIssue]
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
            torch.backends.cudnn.flags(enabled=False),
            MakeThenMove(),
            FakeDevice(counted),
        ):
            yield counted
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)

"""A model that is larger than one device: its decoder layers on several, moved by accelerate's hooks.

Everything else, vision encoder, embedding and head included, stays on the main device: transformers' vision encoders
look up where their weights are, and that is nowhere for weights that accelerate keeps elsewhere.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from midsight.checkpoints.load_options import DeviceMap
from midsight.errors import MidsightError, Option, first_line
from midsight.families.family import Family, decoder_layers
from midsight.memory import free_memory

SPARE_MEMORY = 0.8
"""Largest share of a device's free memory that weights may take."""
DISK = "disk"
"""A place for weights that are read from a temporary file each time they are used."""


def free_by_device(main: torch.device) -> dict[str, int]:
    """Free bytes of the devices that hold weights, in the order in which `auto` fills them."""
    gpus = {}
    if main.type == "cuda":
        others = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
        ordered = dict.fromkeys([with_index(main), *others])
        gpus = {str(device): torch.cuda.mem_get_info(device)[0] for device in ordered}
    elif main.type != "cpu":
        gpus = {str(main): free_memory() // 2}  # Apple's GPUs take their memory from the same
    return {**gpus, "cpu": free_memory()}


def with_index(device: torch.device) -> torch.device:
    """A CUDA device by its number; any other device unchanged."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def dispatch(hf_model: Any, family: Family, device_map: DeviceMap, main: torch.device, free: Mapping[str, int]) -> str:
    """Moves a model's layers where the map says, and everything else to the main device.

    Args:
        hf_model: transformers' model in main memory.
        family: Its family's declarations.
        device_map: As the user gave it.
        main: The main device.
        free: Free bytes by device before the model was loaded.

    Returns:
        Where the layers are, in one sentence.

    Raises:
        MidsightError: The map names a layer or a device that does not exist, or there is no room on disk.
    """
    import accelerate

    sizes = [size_of(layer) for layer in decoder_layers(hf_model, family)]
    home = str(with_index(main))
    places = (
        as_places(device_map, len(sizes), home)
        if device_map != "auto"
        else fill_devices(sizes, size_of(hf_model), home, free)
    )
    require_room(sum(size for size, place in zip(sizes, places, strict=True) if place == DISK))
    path = family.modules.layers
    modules: dict[str, Any] = dict.fromkeys(beside(hf_model, path), home)
    modules |= {f"{path}.{index}": place for index, place in enumerate(places)}
    folder = tempfile.mkdtemp(prefix="midsight-layers-")
    weakref.finalize(hf_model, shutil.rmtree, folder, ignore_errors=True)
    try:
        with quiet_accelerate():
            accelerate.dispatch_model(
                hf_model,
                modules,
                main_device=home,  # pyright: ignore[reportArgumentType]
                offload_dir=folder,
                skip_keys=sorted({"past_key_values", "cache"}),
            )
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        raise MidsightError(
            Option("device_map"), f" cannot be carried out ({first_line(error)}); give auto, or devices that exist."
        ) from error
    return f"Decoder layers are on {describe_places(places)}; everything else is on {home}."


def require_room(needed: int) -> None:
    """Raises MidsightError if the folder for temporary files has no room for so many bytes.

    A full disk would end the process by a signal, because accelerate maps the files into memory.
    """
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MidsightError(
            Option("device_map"),
            f" puts {needed / 1e9:.1f} GB of layers on disk, and {folder} has {free / 1e9:.1f} GB free; set TMPDIR to "
            "a folder on a larger disk.",
        )


def as_places(device_map: Mapping[int, str], layers: int, main: str) -> list[str]:
    """The device of every layer; raises MidsightError for a layer that does not exist."""
    beyond = [layer for layer in device_map if layer >= layers]
    if beyond:
        raise MidsightError(
            Option("device_map"), f" names layer {beyond[0]}, and the decoder has layers 0 to {layers - 1}."
        )
    return [device_map.get(layer, main) for layer in range(layers)]


def fill_devices(sizes: Sequence[int], whole: int, main: str, free: Mapping[str, int]) -> list[str]:
    """The device of every layer, in their order: the main device until it is full, then the others, then the disk.

    Args:
        sizes: Bytes of each layer.
        whole: Bytes of the whole model.
        main: The main device, which also holds what is not a layer.
        free: Free bytes by device, in the order in which they are filled.

    Returns:
        A device for each layer, `disk` for those that fit nowhere.
    """
    left = {device: SPARE_MEMORY * size for device, size in free.items()}
    left[main] -= whole - sum(sizes)
    if sum(sizes) > left[main]:
        left[main] -= max(sizes)  # a layer that is elsewhere is brought here to be used
    places = []
    devices = [main, *(device for device in left if device != main)]
    for size in sizes:
        while devices and left[devices[0]] < size:
            devices.pop(0)
        places.append(devices[0] if devices else DISK)
        if devices:
            left[devices[0]] -= size
    return places


def size_of(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each counted once."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def beside(hf_model: nn.Module, path: str) -> Iterator[str]:
    """Paths of the modules and parameters that are not in the list at `path`, each as large as possible."""
    module, prefix = hf_model, ""
    for part in path.split("."):
        yield from (f"{prefix}{name}" for name, _ in module.named_children() if name != part)
        yield from (f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False))
        module, prefix = module.get_submodule(part), f"{prefix}{part}."


def describe_places(places: Sequence[str]) -> str:
    """Devices with the numbers of their layers, as in `cuda:0 (0 to 19) and disk (20 to 31)`."""
    parts, start = [], 0
    for place, run in itertools.groupby(places):
        stop = start + len(list(run))
        parts.append(f"{place} ({start})" if stop == start + 1 else f"{place} ({start} to {stop - 1})")
        start = stop
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


@contextmanager
def quiet_accelerate() -> Iterator[None]:
    """Keeps accelerate's warnings about weights elsewhere off the terminal; a note says where they are."""
    logger = logging.getLogger("accelerate.big_modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():  # a parameter beside the modules has to be named too
            warnings.filterwarnings("ignore", "The following device_map keys do not match any submodules")
            yield
    finally:
        logger.setLevel(level)

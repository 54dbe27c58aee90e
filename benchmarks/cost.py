"""Floating-point operations and memory: what the machine can do, and what a case needs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from midsight.extraction import meter
from midsight.families.phi4_multimodal import crop_grid

MATRIX_SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
PATCHES = 1024
"""Patches of a crop: 448 pixels a side, 14 pixels a patch."""


def matrix_peak(device: str, repeats: int = 3) -> float:
    """Highest speed of a large matrix product, in floating-point operations per second.

    float32 on a CPU, bfloat16 on a GPU.
    """
    kind = torch.device(device).type
    dtype = torch.float32 if kind == "cpu" else torch.bfloat16
    best = 0.0
    for side in MATRIX_SIDES[kind]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        for _ in range(repeats):
            began = time.perf_counter()
            torch.mm(a, b)
            synchronize()
            best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def memory_bandwidth(device: str, repeats: int = 5) -> float:
    """Highest speed of a large copy inside the device's memory, in bytes per second, read and written."""
    size = 2**31 if torch.device(device).type == "cuda" else 2**27
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        target.copy_(source)
        synchronize()
        best = max(best, 2 * size / (time.perf_counter() - began))
    return best


def vision_flops(config: Any, sizes_px: Sequence[tuple[int, int]], most_crops: int) -> float:
    """Floating-point operations of the vision encoder: the real crops, through the layers up to the feature layer."""
    vision = config.vision_config
    width, mlp = vision.hidden_size, vision.intermediate_size
    layers = range(vision.num_hidden_layers + 1)[vision.feature_layer]
    embedding = 2 * PATCHES * 3 * vision.patch_size**2 * width
    linear = 2 * PATCHES * (4 * width**2 + 2 * width * mlp)
    attention = 4 * PATCHES**2 * width
    grids = [crop_grid(*size_px, vision.crop_size, most_crops) for size_px in sizes_px]
    crops = sum(1 + rows * columns for rows, columns in grids)
    return crops * (embedding + layers * (linear + attention))


def decoder_flops(config: Any, pieces: Sequence[tuple[int, int]]) -> float:
    """Floating-point operations of the decoder layers, without padding and with causal attention.

    `pieces` are parts of prompts: number of tokens before the part, and number of tokens in it.
    """
    heads, hidden = config.num_attention_heads, config.hidden_size
    head = hidden // heads
    per_token = 2 * (hidden * head * (heads + 2 * config.num_key_value_heads) + hidden**2)
    per_token += 2 * 3 * hidden * config.intermediate_size
    tokens = sum(length for _, length in pieces)
    pairs = sum(length * before + length * (length + 1) / 2 for before, length in pieces)
    return config.num_hidden_layers * (tokens * per_token + 4 * pairs * hidden)


def head_flops(config: Any, tokens: int) -> float:
    """Floating-point operations of the language-model head."""
    return 2 * config.vocab_size * config.hidden_size * tokens


def synchronize() -> None:
    """Waits until the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def watched_memory(device: str) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the peak memory so far, minus what was in use at the start: of the GPU, or else
    of the process.

    midsight sets the peak back before each call of the model, so the peak until then is noted.
    """
    on, set_back, highest = torch.device(device), meter.start_peak, 0

    def peak() -> int:
        return torch.cuda.max_memory_allocated() if on.type == "cuda" else resident_peak_bytes()

    def noted(of: torch.device) -> int | None:
        nonlocal highest
        highest = max(highest, peak())
        return set_back(of)

    synchronize()
    used = set_back(on)  # so that the peak of loading the model does not count
    before = psutil.Process().memory_info().rss if used is None else used
    meter.start_peak = noted
    try:
        yield lambda: max(highest, peak()) - before
    finally:
        meter.start_peak = set_back


def resident_peak_bytes() -> int:
    """Peak resident memory of this process since the peak was last reset."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine() -> dict[str, Any]:
    """The machine: processor, cores, threads, memory, and the version of torch."""
    name = next(
        (
            line.partition(":")[2].strip()
            for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ())
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    return {
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "torch": torch.__version__,
    }

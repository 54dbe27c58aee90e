"""What a call of the model takes: seconds, and memory in addition to what was in use before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
"""Linux: writing 5 to `clear_refs` resets the peak in `status`."""


@dataclass
class Usage:
    """What a call took; known when it has ended."""

    seconds: float = 0.0
    """Time by the clock."""
    before: int = 0
    """Bytes in use when the call began."""
    bytes: int | None = None
    """Peak memory during the call, minus what was in use before; None if this machine cannot tell."""


Meter = Callable[[torch.device], AbstractContextManager[Usage]]
"""Measures what happens inside its context."""


@contextmanager
def measured(device: torch.device) -> Iterator[Usage]:
    """Measures a call that leaves nothing to compute on the device when it ends."""
    usage = Usage()
    before, began = start_peak(device), time.perf_counter()
    yield usage
    usage.seconds = time.perf_counter() - began
    if before is not None:
        usage.before, usage.bytes = before, peak(device) - before


def start_peak(device: torch.device) -> int | None:
    """Resets the peak and returns the bytes in use; None if this machine cannot tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return None
    return peak(device)


def peak(device: torch.device) -> int:
    """Peak of the bytes in use since start_peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = (PROCESS / "status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

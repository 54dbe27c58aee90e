"""How much goes through the model in one call: a fixed number of samples, or what memory was measured to hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from midsight.errors import MidsightError

BatchSize = int | Literal["auto"]
"""Most samples in one call of the model, or as many as memory holds."""

FIRST_SAMPLES = 8
"""In the first call of `auto`, and in all of them where memory cannot be measured."""
MOST_SAMPLES = {"cpu": 32, "cuda": 128}
"""Where `auto` ends, by device: more makes decoding little faster."""
MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Of the memory that is free at the start, what a call may take."""
PROCESS = Path("/proc/self")
"""Linux: `clear_refs` sets the peak in `status` back where a 5 is written to it."""

CONTAINER = Path("/sys/fs/cgroup")
"""Linux: what a container may use and does use."""


@dataclass
class Budget:
    """What one call of the model may hold, adjusted after each."""

    device: torch.device
    """Where the calls run."""
    samples: int
    """Most samples of the next call."""
    most_samples: int
    """What `samples` may grow to."""
    tokens: float = math.inf
    """Most tokens of the next call, padding and room for the answers counted."""
    free_bytes: float = math.inf
    """What a call may take beside the weights; infinite where nobody asked for a measured budget."""
    largest: int = 0
    """Tokens of the largest call that was measured."""
    fitting: float = math.inf
    """What `tokens` stays under since a call ran out of memory."""

    @contextmanager
    def watching(self, samples: int, tokens: int) -> Iterator[None]:
        """Measures a call of so many samples and tokens, and lets the next be larger, or no larger than fits.

        Smaller calls than the largest say nothing: part of what they take does not grow with them.
        """
        before = start_peak(self.device) if self.free_bytes < math.inf else None
        yield
        if before is None:
            return
        used = peak(self.device) - before
        if used > 0 and tokens >= self.largest:
            self.largest = tokens
            self.tokens = min(self.fitting, self.free_bytes * tokens / used)
        if samples == self.samples:
            self.samples = min(2 * self.samples, self.most_samples)

    def learn(self, tokens: int, enough: bool) -> None:
        """Half of the tokens of a call that ran out of memory are the most, or those of a part of it that did not."""
        self.fitting = max(self.fitting, tokens) if enough else min(self.fitting, tokens / 2)
        self.tokens = self.fitting


def parse_batch_size(text: str) -> BatchSize:
    """`auto` or a whole number from 1; raises MidsightError."""
    with suppress(ValueError):
        return check_batch_size("auto" if text == "auto" else int(text))
    raise MidsightError(f"--batch-size is {text}; give auto, or 1 or more.")


def check_batch_size(batch_size: BatchSize) -> BatchSize:
    """The same; raises MidsightError where it is neither `auto` nor a whole number from 1."""
    if batch_size != "auto" and (type(batch_size) is not int or batch_size < 1):
        raise MidsightError(f"--batch-size is {batch_size}; give auto, or 1 or more.")
    return batch_size


def make_budget(batch_size: BatchSize, device: torch.device) -> Budget:
    """A budget of `batch_size` samples; of `auto`, by the memory that is free now. Raises MidsightError."""
    if check_batch_size(batch_size) != "auto":
        return Budget(device, int(batch_size), int(batch_size))
    if device.type not in MEMORY_SHARE:
        return Budget(device, FIRST_SAMPLES, FIRST_SAMPLES)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return Budget(device, FIRST_SAMPLES, MOST_SAMPLES[device.type], free_bytes=MEMORY_SHARE[device.type] * free)


def free_memory() -> int:
    """Bytes that this machine has free, or this container where it has a limit of its own."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no container, or no limit
        free = min(free, int((CONTAINER / "memory.max").read_text()) - int((CONTAINER / "memory.current").read_text()))
    return max(0, free)


def start_peak(device: torch.device) -> int | None:
    """Bytes in use now, from which on the peak is counted; None where this machine cannot say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return None
    return peak(device)


def peak(device: torch.device) -> int:
    """The most bytes that were in use since start_peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = (PROCESS / "status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a call failed for want of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

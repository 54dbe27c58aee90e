"""How much goes through the model in one call: a fixed number of samples, or as many as memory holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from midsight.extraction.task import BatchSize, validate_batch_size
from midsight.memory import free_memory

FIRST_SAMPLES = 8
"""Samples in the first call of `auto`, and in every call if memory cannot be measured."""
MOST_SAMPLES = {"cpu": 32, "cuda": 128}
"""Maximum for `auto`, by device: larger calls decode hardly faster."""
MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Share of the memory free at the start that a call may take."""
PROCESS = Path("/proc/self")
"""Linux: writing 5 to `clear_refs` resets the peak in `status`."""


@dataclass
class Budget:
    """What one call of the model may hold, adjusted after each."""

    device: torch.device
    """Where the calls run."""
    samples: int
    """Maximum number of samples in the next call."""
    most_samples: int
    """What `samples` may grow to."""
    tokens: float = math.inf
    """Maximum number of tokens in the next call, padding and answers included."""
    free_bytes: float = math.inf
    """Bytes that a call may take in addition to the weights; infinite if the batch size is fixed."""
    largest: int = 0
    """Tokens of the largest call that was measured."""
    fitting: float = math.inf
    """Upper limit of `tokens` since a call ran out of memory."""

    @contextmanager
    def watching(self, samples: int, tokens: int) -> Iterator[None]:
        """Measures a call with this number of samples and tokens, and sets the size of the next call.

        Memory is taken from the largest call so far, because part of a call's memory does not grow with its size.
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
        """After out-of-memory, caps calls at half its tokens; a part that fits (`enough`) raises the cap to its own."""
        self.fitting = max(self.fitting, tokens) if enough else min(self.fitting, tokens / 2)
        self.tokens = self.fitting


def make_budget(batch_size: BatchSize, device: torch.device) -> Budget:
    """A budget of `batch_size` samples; for `auto`, one computed from the free memory. Raises MidsightError."""
    if validate_batch_size(batch_size) != "auto":
        return Budget(device, int(batch_size), int(batch_size))
    if device.type not in MEMORY_SHARE:
        return Budget(device, FIRST_SAMPLES, FIRST_SAMPLES)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return Budget(device, FIRST_SAMPLES, MOST_SAMPLES[device.type], free_bytes=MEMORY_SHARE[device.type] * free)


def start_peak(device: torch.device) -> int | None:
    """Resets the peak and returns the bytes in use; None if this machine cannot tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a call ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

"""How much goes through the model in one call: a fixed number of samples, or as many as memory holds and speed asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from midsight.extraction.meter import Meter, Usage, measured
from midsight.extraction.needs import SMALL, Needs
from midsight.extraction.size_search import SizeSearch
from midsight.extraction.task import BatchSize, validate_batch_size
from midsight.memory import free_memory

FIRST_CALL_FLOPS = {"cpu": 4e12, "cuda": 5e14}
"""Work of the first call of `auto` in the decoder, by device: up to a minute on two cores, seconds on a GPU."""
PREPARED_SAMPLES, FIRST_SAMPLES = 2000, 32
"""Samples that are prepared in the time of that work, about; and maximum for the first call if the work is that of more
samples. Then preparing takes longer than the model, which should begin early."""
MOST_SAMPLES = {"cpu": 128, "cuda": 256}
"""Maximum for `auto`, by device. From there on a decode step computes longer than it reads weights."""
MEMORY_SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Share of the memory free at the start that a call may take."""
UNMEASURED_SHARE = 0.5
"""Share of that memory that a call may take by estimate, before one was measured."""


@dataclass(frozen=True)
class CallSize:
    """How large a call is."""

    samples: int
    """Number of samples."""
    tokens: int
    """Tokens of its rows as one rectangle, padding and answers included."""
    unpadded: int
    """The same without padding."""


@dataclass
class Budget:
    """What one call of the model may hold, adjusted after each if the batch size is `auto`."""

    device: torch.device
    """Where the calls run."""
    samples: int
    """Maximum number of samples in the next call."""
    most_samples: int
    """What `samples` may grow to; also the maximum for questions on one image, which `auto` keeps together."""
    tokens: float = math.inf
    """Maximum load of the next call, in tokens."""
    sample_tokens: float = 0.0
    """Memory that a sample takes beyond its tokens, as a number of tokens: mostly its logits."""
    free_bytes: float = math.inf
    """Bytes that a call may take in addition to the weights; infinite if the batch size is fixed."""
    first_tokens: float = math.inf
    """Tokens of the first call, by its work; infinite if the batch size is fixed."""
    search: SizeSearch | None = None
    """The search for the fastest size; None before the first call, and if the batch size is fixed."""
    meter: Meter = measured
    """Measures calls."""
    least_used: float = math.inf
    """Fewest bytes in use when a call began. Later calls begin with memory that earlier ones left to be used again."""
    largest: float = 0.0
    """Load of the largest call that was measured."""
    fitting: float = math.inf
    """Upper limit of `tokens` since a call ran out of memory."""

    def load(self, size: CallSize) -> float:
        """What a call takes of the memory, in tokens."""
        return size.tokens + self.sample_tokens * size.samples

    def holds(self, size: CallSize) -> bool:
        """Whether a call may have this size."""
        return size.samples <= self.samples and self.load(size) <= self.tokens

    @property
    def seeks_first_size(self) -> bool:
        """Whether the size of the first call is still to be found."""
        return self.search is None and math.isfinite(self.first_tokens)

    def may_begin(self, samples: int, tokens: int) -> bool:
        """Whether samples with this many tokens, answers included, are enough for the first call."""
        return tokens >= self.first_tokens or samples >= self._most_at_first(samples, tokens)

    def begin(self, samples: int, tokens: int) -> None:
        """Sets the size of the first call, unless it is known; `tokens` are those of the first samples."""
        if not self.seeks_first_size:
            return
        by_work = self.first_tokens * samples / tokens
        by_memory = self.tokens / (tokens / samples + self.sample_tokens)
        first = 2 ** math.floor(math.log2(max(1.0, min(by_work, by_memory, self._most_at_first(samples, tokens)))))
        self.samples, self.search = first, SizeSearch(first, self.most_samples)

    def _most_at_first(self, samples: int, tokens: int) -> int:
        model_waits = self.first_tokens * samples > PREPARED_SAMPLES * tokens
        return FIRST_SAMPLES if model_waits else self.most_samples

    @contextmanager
    def watching(self, size: CallSize) -> Iterator[None]:
        """Measures a call, and sets the size of the next one."""
        if self.search is None:
            yield
            return
        fitting = self.fitting
        with self.meter(self.device) as usage:
            yield
        if self.fitting == fitting:  # else it ran out of memory, and was done in parts
            self._learn_from(size, usage, self.search)

    def _learn_from(self, size: CallSize, usage: Usage, search: SizeSearch) -> None:
        """Memory is taken from the largest call so far, because part of a call's memory does not grow with its size.

        Without a measure of memory, `tokens` stay what was estimated at the start.
        """
        search.add(size.samples, size.unpadded, usage.seconds)
        self.samples = search.samples
        if usage.bytes is None:
            return
        self.least_used = min(self.least_used, usage.before)
        taken, load = usage.before + usage.bytes - self.least_used, self.load(size)
        if taken > 0 and load >= self.largest:
            self.largest = load
            self.tokens = min(self.fitting, self.free_bytes * load / taken)

    def learn(self, size: CallSize, enough: bool) -> None:
        """After out-of-memory, caps calls at half its load; a part that fits (`enough`) raises the cap to its own."""
        load = self.load(size)
        self.fitting = max(self.fitting, load) if enough else min(self.fitting, load / 2)
        self.tokens = self.fitting


def make_budget(
    batch_size: BatchSize, device: torch.device, needs: Needs = SMALL, *, meter: Meter = measured
) -> Budget:
    """A budget of `batch_size` samples; for `auto`, one that starts from what the model needs and the free memory.

    Call it when the weights are loaded. Raises MidsightError.
    """
    if validate_batch_size(batch_size) != "auto":
        return Budget(device, int(batch_size), int(batch_size))
    kind = device.type if device.type in MEMORY_SHARE else "cpu"
    free_bytes = MEMORY_SHARE[kind] * free_on(device)
    return Budget(
        device,
        MOST_SAMPLES[kind],
        MOST_SAMPLES[kind],
        tokens=UNMEASURED_SHARE * free_bytes / needs.token_bytes,
        sample_tokens=needs.sample_bytes / needs.token_bytes,
        free_bytes=free_bytes,
        first_tokens=FIRST_CALL_FLOPS[kind] / needs.token_flops,
        meter=meter,
    )


def free_on(device: torch.device) -> int:
    """Free bytes for calls on a device, those that torch holds in reserve included."""
    if device.type != "cuda":
        return free_memory()
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a call ran out of memory. torch's allocators for the CPU and for Apple's GPUs raise RuntimeError."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(some in str(error) for some in words)

"""What a process takes: peak memory and CPU time."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Usage:
    """What a process has taken since a moment."""

    imported_bytes: int
    """Peak memory at that moment: imports, and with a model PyTorch and transformers among them."""
    peak_bytes: int
    """Peak memory at the end, imports included."""
    cpu_s: float
    """CPU time since then."""

    def __str__(self) -> str:
        return (
            f"{self.cpu_s:.1f} s of CPU time; peak memory {self.peak_bytes / 1e6:,.0f} MB, "
            f"{self.imported_bytes / 1e6:,.0f} MB of it imports"
        )


class Meter:
    """Measures this process from now on, also if it resets its peak to measure a call of the model."""

    def __init__(self) -> None:
        self._imported = self._highest = peak_bytes()
        self._cpu_s = time.process_time()
        if meter := sys.modules.get("midsight.extraction.meter"):  # without it, no model is called
            self._reset = meter.start_peak
            meter.__dict__["start_peak"] = self._start_peak

    def read(self) -> Usage:
        """What was taken until now."""
        return Usage(self._imported, max(self._highest, peak_bytes()), time.process_time() - self._cpu_s)

    def _start_peak(self, device: torch.device) -> int | None:
        self._highest = max(self._highest, peak_bytes())
        return self._reset(device)


def peak_bytes() -> int:
    """Peak memory of this process; on Linux, without that of the process before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

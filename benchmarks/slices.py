"""How many prompts, and how many crops, should go through the model together on a CPU: `python -m benchmarks.slices`.

The model is `mid`; the samples are distinct images of 640 x 480 pixels. Sizes take turns; the median of three counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch.profiler import profile

import midsight
from benchmarks.data import distinct
from benchmarks.models import random_model
from midsight.extraction import prefill
from midsight.extraction.extract_call import prefill_whole
from midsight.extraction.prefill import encode_distinct
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import Request, resolve
from midsight.families import phi4_multimodal
from midsight.samples.sample import Sample

SAMPLES, RUNS = 16, 3
AT_ONCE = (1, 2, 4, 8, 16)
PARTS = {"matrix products": ("aten::mm", "aten::addmm", "aten::bmm"), "attention": ("aten::_scaled_dot_product",)}
"""Parts of a profile, each with how the names of its operations start."""


def main() -> None:
    """Prints seconds per prompt and per image, and what takes the time."""
    model, processor = random_model("mid", "cpu")
    loaded = midsight.wrap(model, processor).loaded
    request = resolve(Request(), loaded)
    with tempfile.TemporaryDirectory() as folder:
        rows = distinct(Path(folder), SAMPLES, 20)
        samples = [Sample(str(n), n, (Path(row.image),), row.question) for n, row in enumerate(rows)]
        items = [item for item in prepare(loaded, request, samples) if isinstance(item, PreparedSample)]
    longest = max(len(item.prompt.token_ids) for item in items)
    with torch.inference_mode():
        images = encode_distinct(loaded, [item.images for item in items])

        def run_prompts(at_once: int) -> None:
            prefill.SLICE_TOKENS = at_once * longest / torch.get_num_threads()
            prefill_whole(loaded, request, items, images, "right")

        def run_crops(at_once: int) -> None:
            phi4_multimodal.CROPS_PER_CALL = at_once
            encode_distinct(loaded, [item.images for item in items])

        report("Decoder, prompts at once", AT_ONCE, run_prompts)
        report("Encoder, crops at once", AT_ONCE, run_crops)
        for at_once in (AT_ONCE[0], AT_ONCE[-1]):
            print(f"Decoder, prompts at once: {at_once}: {shares(lambda n=at_once: run_prompts(n))}", flush=True)


def report(title: str, sizes: Sequence[int], run: Callable[[int], None]) -> None:
    """Times every size, in turns."""
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(RUNS):
        for size in sizes:
            began = time.perf_counter()
            run(size)
            seconds[size].append((time.perf_counter() - began) / SAMPLES)
    for size, times in seconds.items():
        print(f"{title}: {size}: {median(times):.3f} s a sample ({min(times):.3f} to {max(times):.3f})", flush=True)


def shares(run: Callable[[], None]) -> str:
    """The parts of the time that operations of each kind take, in words."""
    with profile() as profiled:
        run()
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    parts = {
        part: sum(event.self_cpu_time_total for event in events if event.key.startswith(names)) / total
        for part, names in PARTS.items()
    }
    parts["all else"] = 1 - sum(parts.values())
    return ", ".join(f"{part} {100 * share:.0f} %" for part, share in parts.items())


if __name__ == "__main__":
    main()

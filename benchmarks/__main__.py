"""Samples per second of the original procedure, of plain batches, and of midsight, in one run on one machine.

Usage: .venv/bin/python -m benchmarks [--size demo|mid|full] [--device cpu|cuda] [--samples N] [--batch-size N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import midsight
from benchmarks.data import distinct, mixed_sizes, ten_questions
from benchmarks.models import random_model
from benchmarks.original import Pair, original, plain_batches

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Case:
    """One dataset and what is asked of it."""

    name: str
    """For the table."""
    pairs: Callable[[int], list[Pair]]
    """Count -> images and questions."""
    new_tokens: int
    """Length of every answer; 0 for none."""


@dataclass(frozen=True)
class Timed:
    """What one case took."""

    case: str
    """Its name."""
    samples: int
    """How many midsight did."""
    original_samples: int
    """How many the other two procedures did: they are slow."""
    original_seconds_per_sample: float
    """The procedure that is copied today."""
    plain_seconds_per_sample: float
    """transformers in plain batches."""
    midsight_seconds_per_sample: float
    """From the dataset to the run folder."""

    @property
    def ratio(self) -> float:
        """How many times faster midsight is than the original."""
        return self.original_seconds_per_sample / self.midsight_seconds_per_sample


CASES = (
    Case("distinct images, 20 new tokens", distinct, 20),
    Case("10 questions per image, 20 new tokens", ten_questions, 20),
    Case("mixed sizes, no answers", mixed_sizes, 0),
)


def main() -> None:
    """Times every case and prints the table; the same goes into benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("demo", "mid", "full"), default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--original-samples", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=20)
    chosen = parser.parse_args()
    model, processor = random_model(chosen.size, chosen.device)
    layers = sorted({0, (n := model.config.num_hidden_layers) // 4, n // 2, 3 * n // 4, n - 1})
    timed = [time_case(case, model, processor, layers, chosen) for case in CASES]
    print(f"\n{'case':40} {'original':>9} {'batches':>9} {'midsight':>9} {'ratio':>7}   (seconds per sample)")
    for one in timed:
        times = (one.original_seconds_per_sample, one.plain_seconds_per_sample, one.midsight_seconds_per_sample)
        print(f"{one.case:40} " + " ".join(f"{seconds:9.3f}" for seconds in times) + f" {one.ratio:6.1f}x")
    RESULTS.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "platform": platform.machine(), "torch": torch.__version__}
    body = {"options": vars(chosen), "machine": machine, "cases": [{**asdict(o), "ratio": o.ratio} for o in timed]}
    (RESULTS / f"{chosen.size}-{chosen.device}.json").write_text(json.dumps(body, indent=2) + "\n")


def time_case(case: Case, model: Any, processor: Any, layers: list[int], chosen: argparse.Namespace) -> Timed:
    """The three procedures on one case, one after the other; midsight last, since it mends the model."""
    few, all_ = case.pairs(chosen.original_samples), case.pairs(chosen.samples)
    original(model, processor, few[:1], layers, min(case.new_tokens, 2))
    alone = seconds(lambda: original(model, processor, few, layers, case.new_tokens))
    batches = seconds(lambda: plain_batches(model, processor, few, layers, case.new_tokens, len(few)))
    wrapped = midsight.wrap(model, processor)
    with tempfile.TemporaryDirectory() as folder:
        options = {"layers": layers, "answers": case.new_tokens > 0, "max_new_tokens": max(case.new_tokens, 1)}
        data = write_dataset(all_, Path(folder))
        ours = seconds(
            lambda: midsight.extract(
                data, model=wrapped, out=Path(folder) / "run", batch_size=chosen.batch_size, **options
            )
        )
    print(f"{case.name}: done", flush=True)
    return Timed(case.name, len(all_), len(few), alone / len(few), batches / len(few), ours / len(all_))


def write_dataset(pairs: list[Pair], folder: Path) -> Path:
    """The pairs as a JSONL file with PNG images beside it."""
    names: dict[int, str] = {}
    rows = []
    for image, question in pairs:
        if id(image) not in names:
            names[id(image)] = f"{len(names)}.png"
            image.save(folder / names[id(image)])
        rows.append(json.dumps({"image": names[id(image)], "question": question}))
    (folder / "data.jsonl").write_text("\n".join(rows))
    return folder / "data.jsonl"


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call, the device's work done."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

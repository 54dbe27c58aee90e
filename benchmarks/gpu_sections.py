"""The sections of the GPU report: each is measured on the same model, and returns plain data."""

from __future__ import annotations

import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import midsight
from benchmarks.cost import machine, matrix_peak, memory_bandwidth
from benchmarks.data import Row, cross_section, distinct, ten_drawn
from benchmarks.gpu_page import render
from benchmarks.measure import Task, default_layers, run_midsight, run_original
from benchmarks.models import random_model
from benchmarks.stopping import StopAfter
from midsight.check.family_checks import SECTIONS, run_sections
from midsight.check.full_forward import full_forward, relative_error, transformers_inputs
from midsight.check.proof import LIMITS, NEW_TOKENS, shipped_samples
from midsight.check.subject import make_subject, prepare_all
from midsight.extraction import extract_call
from midsight.extraction.model import Model

COPIES = (2, 4)
"""Sizes of the batches in which transformers is compared with itself."""
BALLAST_FREE_BYTES = 6 * 2**30
"""Memory that is left free when a call is to run out of it."""


@dataclass(frozen=True)
class Speed:
    """A case of the report, with numbers of samples by device."""

    name: str
    rows: Callable[[Path, int, int], list[Row]]
    new_tokens: int
    counts: dict[str, int]
    """For midsight."""
    counts_of_original: dict[str, int]


SPEEDS = (
    Speed("distinct images, 20 new tokens", distinct, 20, {"cuda": 384, "cpu": 4}, {"cuda": 12, "cpu": 2}),
    Speed("10 questions per image, 20 new tokens", ten_drawn, 20, {"cuda": 960, "cpu": 20}, {"cuda": 12, "cpu": 2}),
    Speed("distinct images, 200 new tokens", distinct, 200, {"cuda": 256, "cpu": 4}, {"cuda": 6, "cpu": 2}),
    Speed("10 questions per image, 200 new tokens", ten_drawn, 200, {"cuda": 640, "cpu": 10}, {"cuda": 6, "cpu": 2}),
)


@dataclass(frozen=True)
class Measuring:
    """What every section uses."""

    device: str
    hf_model: Any
    processor: Any
    model: Model
    peak_flops: float
    """Fastest matrix product, in floating-point operations per second."""
    bandwidth: float
    """Fastest copy inside the device's memory, in bytes per second, read and written."""


def measure_all(size: str, device: str, out: Path, *, seconds_left: Callable[[], float]) -> dict[str, Any]:
    """Measures every section for which there is time; writes the report after each."""
    out.mkdir(parents=True, exist_ok=True)
    peak, bandwidth = matrix_peak(device), memory_bandwidth(device)
    began = time.perf_counter()
    hf_model, processor = random_model(size, device)
    made_s = time.perf_counter() - began
    measuring = Measuring(device, hf_model, processor, midsight.wrap(hf_model, processor), peak, bandwidth)
    report: dict[str, Any] = {
        "size": size,
        "device": device,
        "machine": machine(),
        "parameters": sum(parameter.numel() for parameter in hf_model.parameters()),
        "dtype": str(hf_model.dtype).removeprefix("torch."),
        "seconds_to_make_the_model": made_s,
        "peak_flops": peak,
        "bandwidth": bandwidth,
        "sections": {},
    }
    speeds = {speed.name: lambda speed=speed: measure_speed(measuring, speed) for speed in SPEEDS}
    # the proof comes first: transformers gives hidden states only if a model's first forward asks for them
    sections = {
        "proof": lambda: measure_proof(measuring),
        "parity": lambda: measure_parity(measuring),
        **speeds,
        "out of memory": lambda: measure_out_of_memory(measuring),
    }
    for name, measure in sections.items():
        report["sections"][name] = measured_section(measure, seconds_left)
        report["seconds_left"] = seconds_left()
        (out / f"gpu-{device}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (out / f"gpu-{device}.md").write_text(render(report), encoding="utf-8")
        print(f"{name}: {report['sections'][name].get('seconds', 0):.0f} s, {seconds_left():.0f} s left", flush=True)
    return report


def measured_section(measure: Callable[[], dict[str, Any]], seconds_left: Callable[[], float]) -> dict[str, Any]:
    """A section's result with its time; or why there is none, because the others still count."""
    if seconds_left() <= 0:
        return {"left_out": "there was no time left"}
    began = time.perf_counter()
    try:
        result = measure()
    except Exception:
        result = {"left_out": traceback.format_exc()}
    return {**result, "seconds": time.perf_counter() - began}


def measure_proof(measuring: Measuring) -> dict[str, Any]:
    """The checks of `midsight check --run`."""
    loaded = measuring.model.loaded
    subject = make_subject(
        loaded, shipped_samples(), limit=LIMITS[loaded.dtype], max_new_tokens=NEW_TOKENS, prompt_template="auto"
    )
    checks = run_sections(subject, SECTIONS)
    return {"checks": [{**asdict(check), "passed": check.passed} for check in checks]}


def measure_parity(measuring: Measuring) -> dict[str, Any]:
    """Largest relative error of taps against the full forward, and of the full forward in other batch shapes."""
    loaded = measuring.model.loaded
    subject = make_subject(loaded, shipped_samples(), limit=1.0, max_new_tokens=1, prompt_template="auto")
    request = subject.without_answers
    layers = range(loaded.n_layers)
    ours, own = [], []
    for item, record in zip(prepare_all(loaded, request, subject.samples), subject.alone, strict=True):
        alone = full_forward(loaded, item).hidden_states[1:, -1].numpy()
        names = [f"query_token_representation.layer_{layer}" for layer in layers]
        ours += [relative_error(record.vectors[name], alone[layer]) for layer, name in zip(layers, names, strict=True)]
        inputs = transformers_inputs(loaded, item)
        for copies in COPIES:
            repeated = {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
            with torch.inference_mode():
                output = loaded.hf_model(**repeated, output_hidden_states=True, logits_to_keep=1)
            states = torch.stack([states[0, -1] for states in output.hidden_states[1:]]).float().cpu().numpy()
            own += [relative_error(states[layer], alone[layer]) for layer in layers]
    return {"midsight": max(ours), "transformers in other batch shapes": max(own)}


def measure_speed(measuring: Measuring, speed: Speed) -> dict[str, Any]:
    """The original procedure on a few samples, and midsight on many, with its default batch size."""
    with tempfile.TemporaryDirectory() as folder:
        rows = speed.rows(Path(folder), speed.counts[measuring.device], speed.new_tokens)
        few = cross_section(rows, speed.counts_of_original[measuring.device])
        stop = StopAfter(measuring.hf_model, measuring.processor.tokenizer, {r.question: r.new_tokens for r in rows})
        try:
            task = Task("midsight", "", measuring.device, rows, "auto")
            original = run_original(replace(task, rows=few), measuring.hf_model, measuring.processor)
            ours = run_midsight(task, measuring.hf_model, measuring.processor)
        finally:
            stop.remove()
    tokens = sum(row.new_tokens for row in rows)
    decode_s = ours["phases"]["decode"] * ours["seconds"]
    bytes_read = decoder_bytes(measuring.hf_model) * sum(steps for _, _, steps, _ in ours["calls"])
    return {
        "samples": len(rows),
        "samples_of_original": len(few),
        "original_per_second": len(few) / original["seconds"],
        "midsight_per_second": len(rows) / ours["seconds"],
        "calls": ours["calls"],
        "phases": ours["phases"],
        "peak_shares": ours["peak_shares"],
        "decode_tokens_per_second": tokens / decode_s,
        "decode_limit_tokens_per_second": tokens * measuring.bandwidth / bytes_read,
    }


def decoder_bytes(hf_model: Any) -> int:
    """Bytes of the weights that a decode step reads: the decoder layers and the head."""
    weights = [*hf_model.model.layers.parameters(), *hf_model.get_output_embeddings().parameters()]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def measure_out_of_memory(measuring: Measuring) -> dict[str, Any]:
    """A run whose calls are too large for the memory: every sample has to come out all the same."""
    with tempfile.TemporaryDirectory() as folder:
        rows = distinct(Path(folder), 64 if measuring.device == "cuda" else 8, 1)
        pairs = [(Path(row.image), row.question) for row in rows]
        options: Any = {"layers": default_layers(measuring.hf_model.config), "max_new_tokens": 2}
        with short_of_memory(measuring.device) as sizes:
            outcomes = measuring.model.extract_many(pairs, batch_size=len(rows), **options)
    failed = [outcome.reason for outcome in outcomes if isinstance(outcome, midsight.Failure)]
    return {"samples": len(rows), "failed": failed, "calls": sizes}


@contextmanager
def short_of_memory(device: str) -> Iterator[list[int]]:
    """Lets large calls run out of memory: on a GPU by filling it, on a CPU by raising. Yields the calls' sizes."""
    original, sizes = extract_call.extract_call, list[int]()
    ballast = None
    if device == "cuda":
        torch.cuda.empty_cache()
        ballast = torch.empty(
            max(0, torch.cuda.mem_get_info()[0] - BALLAST_FREE_BYTES), dtype=torch.uint8, device=device
        )

    def watched(model: Any, request: Any, call: Any, *args: Any) -> Any:
        sizes.append(len(call.items))
        if device == "cpu" and len(call.items) > 2:
            raise torch.OutOfMemoryError("made up, because this machine has no GPU")
        return original(model, request, call, *args)

    extract_call.extract_call = watched
    try:
        yield sizes
    finally:
        extract_call.extract_call = original
        del ballast

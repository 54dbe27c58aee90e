"""The proof on a user's own machine: the real weights, the device and kernel that a run would use."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from midsight.extraction.batch import extract_samples
from midsight.extraction.model import Model, load
from midsight.extraction.request import Plan, Request, resolve
from midsight.models.loading import LoadedModel, Lora
from midsight.models.quiet import quiet_transformers
from midsight.records import Record
from midsight.samples.sample import Failure, Sample
from midsight.testing.checks import Check, check_adapter, largest_error

NEW_TOKENS = 12
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.045, torch.float16: 0.045}
"""Largest relative error by dtype; 0.045 is a cosine of 0.999 between vectors of one length."""
LIMIT_ON_ACCELERATORS = 1e-4
"""In float32 away from the CPU, where kernels add up in other orders."""
LORA_DIFFERS_BY = 1e-3


def shipped_samples() -> tuple[Sample, ...]:
    """Three drawn images, of which one fills its crop and one leaves part of it empty, with questions."""
    sizes = {"small": (64, 64), "fills its crop": (448, 448), "two by two": (640, 480)}
    questions = ("What is in the image?", "Is there a red circle? Answer yes or no.", "Describe the picture.")
    return tuple(
        Sample(name, index, (draw(size, index),), question)
        for index, ((name, size), question) in enumerate(zip(sizes.items(), questions, strict=True))
    )


def draw(size: tuple[int, int], seed: int) -> Image.Image:
    """A gradient with a coloured square that depends on the seed, RGB."""
    width, height = size
    image = Image.merge(
        "RGB",
        [
            Image.linear_gradient("L").resize(size),
            Image.linear_gradient("L").rotate(90).resize(size),
            Image.new("L", size, 60 + 60 * seed),
        ],
    )
    colour = ((220, 30, 30), (30, 200, 60), (40, 60, 230))[seed % 3]
    image.paste(colour, (width // 4, height // 4, width // 2, height // 2))
    return image


def prove(
    source: str | Path, *, revision: str | None = None, dtype: str = "auto", device: str = "auto", lora: Lora = "auto"
) -> tuple[Check, ...]:
    """Loads a model as `extract` would and measures its numbers. Raises MidsightError where it cannot be loaded."""
    samples = shipped_samples()
    model = load(source, revision=revision, dtype=dtype, device=device, lora=lora)
    loaded = model.loaded
    limit = LIMITS[loaded.dtype]
    if loaded.dtype == torch.float32 and loaded.device.type != "cpu":
        limit = LIMIT_ON_ACCELERATORS
    checks = list(check_adapter(model, samples, limit=limit, max_new_tokens=NEW_TOKENS))
    plan = resolve(Request(layers="all", max_new_tokens=NEW_TOKENS), loaded)
    records = extract_records(loaded, plan, samples)
    checks.append(Check(f"eager attention and {loaded.attention}", eager_error(loaded, plan, samples, records), limit))
    if loaded.lora == "merged":
        checks.append(check_lora_merged(model, plan, samples, records, source, revision, dtype, device))
    return tuple(checks)


def eager_error(loaded: LoadedModel, plan: Plan, samples: Sequence[Sample], records: Sequence[Record]) -> float:
    """Largest relative error of the vectors when attention is computed step by step."""
    with quiet_transformers():
        loaded.hf_model.set_attn_implementation("eager")
        try:
            eager = extract_records(loaded, plan, samples)
        finally:
            loaded.hf_model.set_attn_implementation(loaded.attention)
    return max(map(largest_error, eager, records))


def check_lora_merged(
    model: Model,
    plan: Plan,
    samples: Sequence[Sample],
    records: Sequence[Record],
    source: str | Path,
    revision: str | None,
    dtype: str,
    device: str,
) -> Check:
    """A merged LoRA cannot be switched off, so the model makes room for one loaded without it."""
    model.loaded.hf_model.to("meta")
    gc.collect()
    without = load(source, revision=revision, dtype=dtype, device=device, lora="off")
    records_without = extract_records(without.loaded, plan, samples)
    smallest = min(map(largest_error, records_without, records))
    return Check("LoRA off and on", smallest, LORA_DIFFERS_BY, must_differ=True)


def extract_records(loaded: LoadedModel, plan: Plan, samples: Sequence[Sample]) -> list[Record]:
    """One record for each sample, each in a batch of its own; raises ValueError where one fails."""
    outcomes = [outcome for sample in samples for outcome in extract_samples(loaded, plan, [sample])]
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise ValueError(f"The shipped sample {outcome.sample_id} failed: {outcome.reason}")
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]

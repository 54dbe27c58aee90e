"""The proof on a user's own machine: the real weights, the device and kernel that a run would use."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from midsight.errors import MidsightError
from midsight.extraction.model import Model, load
from midsight.models.loading import Lora
from midsight.records import Record
from midsight.samples.sample import Failure, Sample
from midsight.testing.checks import Check, check_adapter, compare_lora

NEW_TOKENS = 12
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.045, torch.float16: 0.045}
"""Largest relative error by dtype; 0.045 is a cosine of 0.999 between vectors of one length."""
LIMIT_ON_ACCELERATORS = 1e-4
"""In float32 away from the CPU, where kernels add up in other orders."""


def shipped_samples() -> tuple[Sample, ...]:
    """Three drawn images with questions; one fills its crop, the others leave part of theirs empty."""
    sizes = {"wide": (300, 200), "fills its crop": (448, 448), "two by two": (640, 480)}
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
    checks = check_adapter(model, samples, limit=limit, max_new_tokens=NEW_TOKENS)
    if loaded.lora != "merged":
        return checks
    with_lora = extract_vectors(model, samples)
    loaded.hf_model.to("meta")  # a merged LoRA cannot be switched off: the model makes room for one without it
    gc.collect()
    without = extract_vectors(load(source, revision=revision, dtype=dtype, device=device, lora="off"), samples)
    return (*checks, compare_lora(without, with_lora))


def extract_vectors(model: Model, samples: Sequence[Sample]) -> list[Record]:
    """One record for each sample, without answers; raises MidsightError where one fails."""
    outcomes = model.extract_many(samples, layers="all", answers=False)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if failed:
        raise MidsightError(f"The shipped sample {failed[0].sample_id} failed: {failed[0].reason}")
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]

"""The proof on a user's own machine: the real weights, the device and kernel that a run would use."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from midsight.errors import MidsightError
from midsight.extraction.model import Model, load
from midsight.models.hub import find_model_folder
from midsight.models.loading import LoadedModel, Lora
from midsight.records import Record
from midsight.samples.sample import Failure, Sample
from midsight.testing.checks import Check, check_adapter, compare_lora

NEW_TOKENS = 12
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.045, torch.float16: 0.045}
"""Largest relative error by dtype; 0.045 is a cosine of 0.999 between vectors of one length."""
LIMIT_ON_ACCELERATORS = 1e-4
"""In float32 away from the CPU, where kernels add up in other orders."""


@dataclass(frozen=True)
class Proof:
    """A model as it was loaded, and what was measured of it."""

    dtype: str
    """Of the decoder's weights: float32, bfloat16 or float16."""
    device: str
    """Where the weights were, as torch spells it."""
    attention: str
    """transformers' name of the attention kernel."""
    lora: str
    """How the LoRA for images was applied, as in LoadedModel."""
    mends: tuple[str, ...]
    """What was corrected at load, a sentence each."""
    notes: tuple[str, ...]
    """What a user should know about the load, a sentence each."""
    checks: tuple[Check, ...]
    """Figures, limits and verdicts."""

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(check.passed for check in self.checks)


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
) -> Proof:
    """Loads a model as `extract` would and measures its numbers. Raises MidsightError where it cannot be loaded."""
    folder = find_model_folder(source, revision=revision).path
    samples = shipped_samples()
    model = load(folder, dtype=dtype, device=device, lora=lora)
    loaded = model.loaded
    limit = LIMITS[loaded.dtype]
    if loaded.dtype == torch.float32 and loaded.device.type != "cpu":
        limit = LIMIT_ON_ACCELERATORS
    proof = as_loaded(loaded, check_adapter(model, samples, limit=limit, max_new_tokens=NEW_TOKENS))
    if loaded.lora != "merged":
        return proof
    with_lora = extract_vectors(model, samples)
    loaded.hf_model.to("meta")  # a merged LoRA cannot be switched off: the model makes room for one without it
    gc.collect()
    # named by what the first load chose: `auto` may choose otherwise, with other memory free
    other = load(folder, dtype=proof.dtype, device=proof.device, lora="off")
    return replace(proof, checks=(*proof.checks, compare_lora(extract_vectors(other, samples), with_lora)))


def as_loaded(loaded: LoadedModel, checks: tuple[Check, ...]) -> Proof:
    """The proof of a loaded model."""
    return Proof(
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        attention=loaded.attention,
        lora=loaded.lora,
        mends=loaded.mends,
        notes=loaded.notes,
        checks=checks,
    )


def extract_vectors(model: Model, samples: Sequence[Sample]) -> list[Record]:
    """One record for each sample, without answers; raises MidsightError where one fails."""
    outcomes = model.extract_many(samples, layers="all", answers=False)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if failed:
        raise MidsightError(f"The shipped sample {failed[0].sample_id} failed: {failed[0].reason}")
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]

"""The proof on a user's own machine: with the weights, device and attention kernel that a run would use."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from midsight.check.check import Check
from midsight.check.family_checks import SECTIONS, run_section, run_sections
from midsight.check.lora import check_factors, compare_lora, extract_each
from midsight.check.subject import Subject, make_subject
from midsight.checkpoints.adapter import FoundModel, find_model
from midsight.checkpoints.load_options import DeviceMap, Lora
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.model import load
from midsight.extraction.request import Request, resolve
from midsight.prompts.image_places import images_first
from midsight.samples.sample import Sample

NEW_TOKENS = 12
"""Maximum number of new tokens in the answers that are compared."""
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.045, torch.float16: 0.045}
"""Largest relative error by dtype; 0.045 is a cosine of 0.999 between vectors of the same length."""
LIMIT_ON_ACCELERATORS = 1e-4
"""Largest relative error in float32 on other devices than the CPU, where kernels sum in other orders."""
PIXELS = (
    "Images are resized as the published processor does; to compare with a script on transformers 5, which resizes "
    "tensors, extract with --pixels transformers."
)
NO_PROCESSOR = "The prompts were not compared: transformers makes no processor from the folder."


@dataclass(frozen=True)
class Proof:
    """How a model was loaded, and what was measured."""

    dtype: str
    """Dtype of the decoder's weights: float32, bfloat16 or float16."""
    device: str
    """Device of the weights, as torch spells it."""
    attention: str
    """transformers' name of the attention kernel."""
    lora: str
    """How the LoRA for images was applied, as LoadedModel spells it."""
    prompt: str
    """The prompt of the first sample, each image one image token."""
    fixes: tuple[str, ...]
    """The bugs that were fixed at load, one sentence each."""
    notes: tuple[str, ...]
    """What a user should know about the load, one sentence each."""
    checks: tuple[Check, ...]
    """What was compared, with figures and limits."""

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(check.passed for check in self.checks)


def shipped_samples() -> tuple[Sample, ...]:
    """Three drawn images with questions; one image fills its crop, the others leave part of it empty."""
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
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora = "auto",
    base: str | Path | None = None,
    base_revision: str | None = None,
    device_map: DeviceMap | None = None,
    family: str | Path | None = None,
    prompt_template: str | Path = "auto",
    on_section: Callable[[str], None] = lambda _: None,
) -> Proof:
    """Loads a model as `extract` would, and measures its numbers on three drawn images.

    Args:
        source: Model folder or hub id.
        revision: Branch, tag or commit of a hub id.
        dtype: As in `midsight.load`.
        device: As in `midsight.load`.
        lora: As in `midsight.load`.
        base: As in `midsight.load`.
        base_revision: As in `midsight.load`.
        device_map: As in `midsight.load`.
        family: As in `midsight.load`.
        prompt_template: `auto`, `raw`, or a file with a chat template.
        on_section: Called with the name of each section before it starts.

    Returns:
        How the model was loaded, and the checks with figures and limits.

    Raises:
        MidsightError: The model cannot be loaded, or an argument has a wrong value.
    """
    samples = shipped_samples()
    on_section("loading the model")
    source_of: dict[str, Any] = {"revision": revision, "base": base, "base_revision": base_revision}
    options: dict[str, Any] = {**source_of, "family": family, "device_map": device_map}
    loaded = load(source, **options, dtype=dtype, device=device, lora=lora).loaded
    limit = LIMITS[loaded.dtype]
    if loaded.dtype == torch.float32 and loaded.device.type != "cpu":
        limit = LIMIT_ON_ACCELERATORS
    subject = make_subject(loaded, samples, limit=limit, max_new_tokens=NEW_TOKENS, prompt_template=prompt_template)
    find = partial(find_model, source, **source_of, family_file=loaded.family_file)
    proof = measure(subject, find, prompt_template, on_section)
    if loaded.lora != "merged" or not subject.is_extracted:
        return proof
    on_section("LoRA off and on")
    with_lora, request = subject.alone, subject.without_answers
    # a merged LoRA cannot be switched off: free the memory, and load the model again without it
    del loaded, subject
    gc.collect()
    # dtype and device of the first load, because `auto` depends on the memory that is free
    other = load(source, **options, dtype=proof.dtype, device=proof.device, lora="off").loaded
    off_and_on = run_section("LoRA", lambda: [compare_lora(extract_each(other, request, samples), with_lora)])
    return replace(proof, checks=(*proof.checks, *off_and_on))


def measure(
    subject: Subject,
    find: Callable[[], FoundModel],
    prompt_template: str | Path,
    on_section: Callable[[str], None],
) -> Proof:
    """All checks of a loaded model but that of its LoRA off and on; `find` finds its folders."""
    checks = (
        *run_sections(subject, SECTIONS, on_section),
        *run_section("LoRA", lambda: check_factors(subject, find())),
    )
    return as_loaded(subject.model, checks, render_example(subject.model, subject.samples[0], prompt_template))


def render_example(loaded: LoadedModel, sample: Sample, prompt_template: str | Path) -> str:
    """The prompt for a sample's question and one image."""
    prompt = resolve(Request(prompt_template=prompt_template), loaded).prompt
    return prompt.render(loaded.processor, loaded.family.prompt, images_first(sample.question).places)


def as_loaded(loaded: LoadedModel, checks: tuple[Check, ...], prompt: str) -> Proof:
    """The proof of a loaded model with these checks."""
    notes = loaded.notes
    if loaded.family.vision.default_pixels == "pil":
        notes = (*notes, PIXELS)
    if not hasattr(loaded.processor, "apply_chat_template"):
        notes = (*notes, NO_PROCESSOR)
    return Proof(
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        attention=loaded.attention,
        lora=loaded.lora,
        prompt=prompt,
        fixes=loaded.fixes,
        notes=notes,
        checks=checks,
    )

"""check_family: proves a family's declarations on the real tensors of a loaded model.

The reference is transformers' own full forward with output_hidden_states: one sample at a time, without padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from midsight.check.check import Check, count
from midsight.check.declarations import check_declarations
from midsight.check.generated import check_answers
from midsight.check.inputs import check_images, check_pixels, check_prompts, check_records
from midsight.check.longrope import check_longrope
from midsight.check.lora import check_lora
from midsight.check.states import (
    check_batches,
    check_before_image,
    check_continued,
    check_eager,
    check_prefix,
    check_taps,
)
from midsight.check.subject import Subject, make_subject
from midsight.check.together import check_together, check_two_images
from midsight.check.vision import check_useful_patches, check_vision_features
from midsight.errors import first_line
from midsight.extraction.model import Model
from midsight.samples.sample import Sample


def check_finite(subject: Subject) -> list[Check]:
    """Values of the full forwards that are not finite."""
    states = [forward.hidden_states for forward in subject.forwards]
    return [count("values of the full forward that are not finite", sum(int((~s.isfinite()).sum()) for s in states))]


SECTIONS: Mapping[str, Callable[[Subject], list[Check]]] = {
    "declarations": check_declarations,
    "prompts": check_prompts,
    "pixels": check_pixels,
    "images": check_images,
    "records": check_records,
    "states": check_taps,
    "states before the image": check_before_image,
    "vision features": check_vision_features,
    "useful patches": check_useful_patches,
    "batches": check_batches,
    "shared prefix": check_prefix,
    "continued prefix": check_continued,
    "attention kernel": check_eager,
    "answers": lambda subject: check_answers(subject.model, subject.alone, subject.generated, subject.limit),
    "calls of several samples": check_together,
    "two images": check_two_images,
    "longrope": check_longrope,
    "LoRA": check_lora,
}
"""The sections of a proof, in order; one that has nothing to compare in a model gives no check."""


def check_family(
    model: Model,
    samples: Sequence[Sample],
    *,
    limit: float = 1e-5,
    max_new_tokens: int = 12,
    prompt_template: str | Path = "auto",
    sections: Iterable[str] = SECTIONS,
) -> tuple[Check, ...]:
    """Measures every declaration of the model's family on samples.

    Args:
        model: A freshly loaded model. transformers returns hidden states only if the model's first full forward asks
            for them.
        samples: Two or more, of different images.
        limit: Largest relative error that passes; 1e-5 is for float32 on a CPU.
        max_new_tokens: Maximum number of new tokens in the answers that are compared.
        prompt_template: `auto` is the model folder's own chat template, `raw` the images and the user's text alone; or
            the path of a file with one.
        sections: The sections of the proof to run, by name; all by default.

    Returns:
        The checks, with figures and limits. A section that raises is a check that does not pass.

    Raises:
        SampleError: A sample cannot be extracted.
        MidsightError: The folder has no chat template, or `prompt_template` cannot be used.
    """
    subject = make_subject(
        model.loaded, samples, limit=limit, max_new_tokens=max_new_tokens, prompt_template=prompt_template
    )
    return run_sections(subject, sections)


def run_sections(
    subject: Subject, sections: Iterable[str], on_section: Callable[[str], None] = lambda _: None
) -> tuple[Check, ...]:
    """The checks of some sections, in order; raises SampleError if a sample cannot be prepared.

    `on_section` is called with each section's name before it starts.
    """
    _ = subject.prepared
    on_section("full forwards")
    # before all sections, because transformers gives hidden states only if a model's first forward asks for them
    broken = run_section("the full forward of each sample", lambda: check_finite(subject))
    checks: list[Check] = []
    for name in sections:
        on_section(name)
        checks += run_section(name, lambda name=name: SECTIONS[name](subject))
    return (*broken, *checks)


def run_section(name: str, measure: Callable[[], list[Check]]) -> list[Check]:
    """The checks of a section; if it raises, one check that says so and does not pass."""
    try:
        return measure()
    except Exception as error:  # what is wrong may raise anything, and the other sections still have to be seen
        reason = f"{type(error).__name__}: {first_line(error)}"
        return [Check(f"{name}: could not be compared", math.nan, 0, unit="count", error=reason)]

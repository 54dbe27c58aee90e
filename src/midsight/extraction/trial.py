"""Prompts of the first samples, made before the model and the images are read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from midsight.checkpoints.loading import LoadedModel
from midsight.errors import SampleError
from midsight.extraction.request import ResolvedRequest
from midsight.prompts.prompt import tokenise_prompt
from midsight.samples.sample import Failure
from midsight.samples.streams import SampleStream
from midsight.samples.tables import Dataset

SAMPLES_TRIED = 1_000
"""Samples whose prompts are made."""


@dataclass(frozen=True)
class TriedPrompts:
    """What came of the first samples' prompts."""

    first: str | None
    """The first prompt as text, each image one image token; None if there is none."""
    failures: tuple[Failure, ...]
    """The samples whose prompt cannot be made."""


def try_prompts(data: Dataset | SampleStream, model: LoadedModel, request: ResolvedRequest) -> TriedPrompts:
    """The prompts of the first samples, each of their images one token long; those of a stream are not made."""
    first, failures = None, list[Failure]()
    for sample in itertools.islice(data.samples if isinstance(data, Dataset) else (), SAMPLES_TRIED):
        try:
            turn = request.prompt.turn(sample)
            tokens = [1] * len(turn.images)
            prompt = tokenise_prompt(model.processor, model.family.prompt, request.prompt, turn, tokens)
            first = prompt.text if first is None else first
        except SampleError as error:
            failures.append(Failure(sample.sample_id, sample.input_index, str(error)))
    return TriedPrompts(first, tuple(failures))

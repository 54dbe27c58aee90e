"""What a proof measures: a model, its samples, and what midsight and transformers each compute for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from midsight.check.full_forward import FullForward, full_forward
from midsight.check.generated import Generated, generate
from midsight.check.processor import processor_inputs, takes
from midsight.checkpoints.loading import LoadedModel
from midsight.errors import SampleError
from midsight.extraction.calls import Call, plan_whole
from midsight.extraction.extract_call import extract_call, extract_samples
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import PaddingSide, Request, ResolvedRequest, resolve
from midsight.records import Record
from midsight.samples.sample import Failure, Sample
from midsight.taps.tap import POSITIONS


@dataclass(frozen=True)
class Subject:
    """A model and the samples that it is measured on; each result is computed once, when it is first asked for."""

    model: LoadedModel
    """A freshly loaded model."""
    request: ResolvedRequest
    """Every layer, position and stage, with answers."""
    samples: tuple[Sample, ...]
    """Two or more, of different images."""
    limit: float
    """Largest relative error that passes."""

    @property
    def without_answers(self) -> ResolvedRequest:
        """The request without answers."""
        return replace(self.request, answers=False)

    @cached_property
    def prepared(self) -> list[PreparedSample]:
        """The samples, ready for the model; raises SampleError."""
        return prepare_all(self.model, self.request, self.samples)

    @cached_property
    def pairs(self) -> tuple[Sample, ...]:
        """The images of the first two samples in one sample, in either order; empty if the processor takes one."""
        one, other = self.samples[:2]
        images = (one.images[0], other.images[0])
        pairs = (Sample("two", 0, images, one.question), Sample("turned", 1, images[::-1], one.question))
        return pairs if takes(self.model, self.request, pairs[0]) else ()

    @property
    def with_pairs(self) -> tuple[Sample, ...]:
        """The samples, and those of two images."""
        return (*self.samples, *self.pairs)

    @cached_property
    def processed(self) -> list[Mapping[str, Any]]:
        """What the folder's own processor makes of the samples and the pairs; empty if there is no processor."""
        made = [processor_inputs(self.model, self.request, sample) for sample in self.with_pairs]
        return [inputs for inputs in made if inputs is not None]

    @cached_property
    def forwards(self) -> list[FullForward]:
        """Transformers' own full forward over each sample."""
        return [full_forward(self.model, item) for item in self.prepared]

    @cached_property
    def generated(self) -> list[Generated]:
        """Transformers' own greedy answer to each sample."""
        return [generate(self.model, self.request, item) for item in self.prepared]

    @cached_property
    def alone(self) -> list[Record]:
        """The record that midsight makes of each sample, extracted by itself; raises SampleError."""
        return [record_of(extract_samples(self.model, self.request, [sample])[0]) for sample in self.samples]

    @property
    def is_extracted(self) -> bool:
        """Whether the records of `alone` are there; they are not if a section that needed them raised."""
        return "alone" in vars(self)


def make_subject(
    model: LoadedModel,
    samples: Sequence[Sample],
    *,
    limit: float,
    max_new_tokens: int,
    prompt_template: str | Path,
) -> Subject:
    """The subject of a proof; raises MidsightError if `prompt_template` cannot be used."""
    everything = Request(
        layers="all",
        residual=True,
        positions=POSITIONS,
        max_new_tokens=max_new_tokens,
        prompt_template=prompt_template,
    )
    return Subject(model, resolve(everything, model), tuple(samples), limit)


def prepare_all(model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample]) -> list[PreparedSample]:
    """Each sample ready for the model; raises SampleError."""
    return [_usable(item) for item in prepare(model, request, samples)]


def _usable(item: PreparedSample | Failure) -> PreparedSample:
    if isinstance(item, Failure):
        raise SampleError(f"Sample {item.sample_id} cannot be prepared: {item.reason}")
    return item


def record_of(outcome: Record | Failure) -> Record:
    """The record of a sample; raises SampleError if it failed."""
    if isinstance(outcome, Failure):
        raise SampleError(f"Sample {outcome.sample_id} cannot be extracted: {outcome.reason}")
    return outcome


def extract_together(
    model: LoadedModel,
    request: ResolvedRequest,
    prepared: Sequence[PreparedSample],
    side: PaddingSide | None = None,
    *,
    halved: bool = False,
) -> list[Record]:
    """The records of the samples, in their order, from as few calls as their kinds allow.

    `side` is that of the padding, by default the model's usual one. A call that raises is not halved, as extraction
    does: that hides errors of calls of several samples. Raises SampleError if a sample fails.
    """
    calls: list[Call] = list(plan_whole(prepared, request))
    if halved:
        calls = [half for call in calls for half in (call.halves() if len(call.items) > 1 else (call,))]
    outcomes = [outcome for call in calls for outcome in extract_call(model, request, call, side)]
    by_id = {outcome.sample_id: record_of(outcome) for outcome in outcomes}
    for item in prepared:
        if item.sample.sample_id not in by_id:
            raise SampleError(f"Sample {item.sample.sample_id} left no record.")
    return [by_id[item.sample.sample_id] for item in prepared]

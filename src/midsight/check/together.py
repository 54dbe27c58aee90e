"""Calls of several samples, from the prompt to the last answer, against transformers' numbers for each sample."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from midsight.check.check import Check
from midsight.check.full_forward import FullForward, full_forward
from midsight.check.generated import Generated, check_answers_together, generate
from midsight.check.states import tap_error
from midsight.check.subject import Subject, extract_together, prepare_all
from midsight.check.vision import vision_error
from midsight.checkpoints.generation import AnswerSettings
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import ResolvedRequest, padding_sides
from midsight.records import Record
from midsight.samples.images import decode_image
from midsight.samples.sample import Sample


@dataclass(frozen=True)
class Group:
    """Samples that go through the model together, and what transformers computes for each."""

    prepared: list[PreparedSample]
    """In the order of the samples."""
    forwards: list[FullForward]
    """The full forward over each."""
    generated: list[Generated]
    """The greedy answer to each, which no token ends."""


def make_group(model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample]) -> Group:
    """Runs transformers over each sample."""
    prepared = prepare_all(model, request, samples)
    return Group(
        prepared,
        [full_forward(model, item) for item in prepared],
        [generate(model, request, item) for item in prepared],
    )


def same_size_samples(subject: Subject) -> list[Sample]:
    """Three questions on an image and two on its copy turned upside down, which has the same number of tokens.

    A call of all five is halved within the first image's questions.
    """
    image = decode_image(subject.samples[0].images[0])
    turned = image.transpose(Image.Transpose.ROTATE_180)
    short, long = (sample.question for sample in subject.samples[:2])
    asked = [(image, short), (turned, long), (image, f"{short} {long}"), (turned, short), (image, long)]
    return [Sample(f"same-{i}", i, (one,), question) for i, (one, question) in enumerate(asked)]


def check_together(subject: Subject) -> list[Check]:
    """Several questions on two images of one size in one call, whose answers end at different times, or at none.

    Other stop ids than the model's see to that. The likeliest token is taken at every step; if the folder's generation
    config changes answers, they are compared once more as it asks.
    """
    samples = same_size_samples(subject)
    endless = answering(subject, AnswerSettings())
    group = make_group(endless.model, endless.request, samples)
    images = [item.image_id for item in group.prepared]
    stopping = answering(subject, AnswerSettings(stop_ids=early_stops(group.generated, images)))
    model, request = stopping.model, stopping.request
    shared = [
        *(extract_together(model, request, group.prepared, side) for side in padding_sides(model)),
        extract_together(model, request, group.prepared, halved=True),
    ]
    whole = replace(request, share=False)
    alone = [extract_together(model, whole, group.prepared, side) for side in padding_sides(model)]
    full_length = extract_together(endless.model, endless.request, group.prepared)
    return [
        *compare_group("questions on two images of one size in one call", stopping, group, shared),
        *compare_group("the same questions, no prefix shared", stopping, group, alone),
        *compare_group("the same questions, no stop id", endless, group, [full_length]),
        *check_configured(subject, samples),
    ]


def answering(subject: Subject, settings: AnswerSettings) -> Subject:
    """The subject, whose answers follow these settings instead of the folder's."""
    model, request = subject.model, subject.request
    return replace(
        subject,
        model=replace(model, answer_settings=settings),
        request=replace(request, answer_settings=settings),
    )


def check_configured(subject: Subject, samples: Sequence[Sample]) -> list[Check]:
    """The samples in one call with the folder's own generation config; nothing if it changes no answer."""
    if not subject.request.answer_settings.values:
        return []
    group = make_group(subject.model, subject.request, samples)
    records = extract_together(subject.model, subject.request, group.prepared)
    return compare_group("the same questions, as the generation config asks", subject, group, [records])


def compare_group(what: str, subject: Subject, group: Group, runs: Sequence[Sequence[Record]]) -> list[Check]:
    """The records of a group, extracted in several ways, against what transformers computes for each of its samples."""
    records, times = [record for run in runs for record in run], len(runs)
    prepared, forwards, generated = group.prepared * times, group.forwards * times, group.generated * times
    return [
        Check(
            f"{what}: states and transformers' full forward",
            tap_error(subject, records, prepared, forwards),
            subject.limit,
        ),
        *check_answers_together(what, subject.model, records, generated, subject.limit),
    ]


def early_stops(generated: Sequence[Generated], images: Sequence[str]) -> tuple[int, ...]:
    """Token ids that, as stop ids, end all answers to the first image while one to another image goes on longest.

    Then rows leave the cache at different times. Empty if the answers are too much alike.
    """
    first = [one for one, image in zip(generated, images, strict=True) if image == images[0]]
    rest = [one for one, image in zip(generated, images, strict=True) if image != images[0]]
    best, best_lead = (), 0
    for stops in itertools.product(*(one.token_ids[1:6] for one in first)):
        lead = max(len(one.until(stops)) for one in rest) - max(len(one.until(stops)) for one in first)
        if lead > best_lead:
            best, best_lead = stops, lead
    return best


def check_two_images(subject: Subject) -> list[Check]:
    """Samples with two images, in both orders, in one call. Nothing is measured if the processor takes one image."""
    if not subject.pairs:
        return []
    model, request = subject.model, subject.without_answers
    prepared = prepare_all(model, request, subject.pairs)
    forwards = [full_forward(model, item) for item in prepared]
    records = extract_together(model, request, prepared)
    what = "two images in one sample, in either order"
    return [
        Check(
            f"{what}: states and transformers' full forward",
            tap_error(subject, records, prepared, forwards),
            subject.limit,
        ),
        Check(
            f"{what}: vision features and transformers' tower",
            vision_error(model, records, prepared, forwards),
            subject.limit,
        ),
    ]

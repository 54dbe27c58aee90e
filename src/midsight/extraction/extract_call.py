"""One planned call from prepared samples to records: encode, prefill, decode, collect."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from midsight.checkpoints.loading import LoadedModel
from midsight.errors import BrokenOffError, first_line
from midsight.extraction.budget import CallSize, is_out_of_memory
from midsight.extraction.calls import Call, plan_whole
from midsight.extraction.decode import (
    Answer,
    Continuation,
    FirstToken,
    continue_from,
    decode_until,
    describe_first_token,
    to_logits,
)
from midsight.extraction.prefill import Prefill, encode_distinct, pad_rows, prefill
from midsight.extraction.prepare import PreparedSample, pooled_pixels, prepare
from midsight.extraction.request import PaddingSide, ResolvedRequest, padding_sides
from midsight.extraction.risk import Risk
from midsight.extraction.sharing import prefill_shared
from midsight.families.inputs import EncodedImage, continue_positions, mean_over_patches
from midsight.prompts.token_layout import Span
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY, Double, Record
from midsight.samples.images import Note, say_nothing
from midsight.samples.sample import Failure, Sample

Outcome = Record | Failure
"""What one sample leaves."""


def extract_samples(
    model: LoadedModel,
    request: ResolvedRequest,
    samples: Sequence[Sample],
    *,
    padding_side: PaddingSide | None = None,
    note: Note = say_nothing,
) -> list[Outcome]:
    """One outcome for each sample, in their order, from as few calls of the model as their kinds allow.

    `note` is told of images that come out nearly black.
    """
    prepared = prepare(model, request, samples, note)
    ready = [item for item in prepared if isinstance(item, PreparedSample)]
    outcomes: list[Outcome] = [item for item in prepared if isinstance(item, Failure)]
    for call in plan_whole(ready, request):
        outcomes += extract_or_halve(model, request, call, padding_side=padding_side)
    by_id = {outcome.sample_id: outcome for outcome in outcomes}
    return [by_id[sample.sample_id] for sample in samples]


def extract_or_halve(
    model: LoadedModel,
    request: ResolvedRequest,
    call: Call,
    *,
    padding_side: PaddingSide | None = None,
    on_memory: Callable[[CallSize, bool], None] = lambda _size, _enough: None,
    on_apart: Callable[[int, str], None] = lambda _size, _problem: None,
) -> list[Outcome]:
    """One outcome for each sample of the call; a call that fails is halved until the sample at fault is alone.

    If a call of several samples runs out of memory, `on_memory` gets its size and False. From then on it also gets the
    size of each call that fits, and True. If the samples of a call fail only together, `on_apart` gets their number and
    the error. Raises BrokenOffError if the device is lost.
    """
    ran_out = False

    def extract(part: Call) -> list[Outcome]:
        nonlocal ran_out
        try:
            outcomes = extract_call(model, request, part, padding_side)
        except Exception as error:
            if is_out_of_memory(error) and len(part.items) > 1:
                ran_out = True
                on_memory(part.size, False)
            raise
        if ran_out:
            on_memory(part.size, True)
        return outcomes

    return isolate_failures(call, extract, lambda: still_works(model.device), on_apart)


def still_works(device: torch.device) -> bool:
    """Whether the device still computes; after some errors a CUDA device fails until its process ends."""
    try:
        return bool(torch.ones(1, device=device).sum().item() == 1)
    except Exception:  # a lost device raises many types
        return False


def isolate_failures(
    call: Call,
    extract: Callable[[Call], list[Outcome]],
    device_works: Callable[[], bool],
    on_apart: Callable[[int, str], None],
) -> list[Outcome]:
    """Calls `extract`; if it raises, tries again with halves, down to single samples.

    If no sample fails then, `on_apart` gets the number of samples and the error, unless memory was missing. Raises
    BrokenOffError if the device is lost: then no sample is at fault.
    """
    try:
        return extract(call)
    except Exception as error:  # a model may raise anything for a sample; the others are still extracted
        problem, no_memory = f"{type(error).__name__}: {first_line(error)}", is_out_of_memory(error)
        if not device_works():
            raise BrokenOffError(
                f"The device was lost ({problem}); the same call resumes from what is stored."
            ) from error
        if len(call.items) == 1:
            sample = call.items[0].sample
            return [Failure(sample.sample_id, sample.input_index, f"The model failed on this sample: {problem}.")]
    # not inside `except`, where the error would hold the memory of the call that failed
    parts = [isolate_failures(half, extract, device_works, on_apart) for half in call.halves()]
    outcomes = [outcome for part in parts for outcome in part]
    if not no_memory and not any(isinstance(outcome, Failure) for outcome in outcomes):
        on_apart(len(call.items), problem)
    return outcomes


@torch.inference_mode()
def extract_call(
    model: LoadedModel, request: ResolvedRequest, call: Call, padding_side: PaddingSide | None = None
) -> list[Outcome]:
    """One outcome for each sample of the call, in its order: one prefill for all, their risks, then their answers.

    Prompts are padded on the model's usual side by default.
    """
    items, padding_side = call.items, padding_side or padding_sides(model)[0]
    images = encode_distinct(model, [item.images for item in items])
    if call.shares_prefixes:
        filled = prefill_shared(model, call, images, request.taps, padding_side)
    else:
        filled = prefill_whole(model, request, items, images, padding_side)
    vectors = collect_vectors(request, items, images, filled)
    if not request.reads_first_token:
        return [make_outcome(model, item, vectors[i]) for i, item in enumerate(items)]
    risks = find_risks(request.risk, vectors)
    start = continue_from(model, filled) if request.answers else None
    first_tokens = describe_first_token(start.logits if start else to_logits(model, filled.end_states))
    answers: list[Answer | None] = [None] * len(items)
    if start:
        answers = answer_below(risks, model, request, call, images, start)
    stored = [{name: of_sample[name] for name in request.vectors} for of_sample in vectors]
    return [
        make_outcome(model, item, stored[i], answers[i], first_tokens[i], risks[i], request.risk)
        for i, item in enumerate(items)
    ]


def find_risks(risk: Risk | None, vectors: Sequence[dict[str, np.ndarray]]) -> list[float | None]:
    """The risk of each sample; None without a probe."""
    if risk is None:
        return [None] * len(vectors)
    return risk.of(np.stack([of_sample[risk.column] for of_sample in vectors])).tolist()


def answer_below(
    risks: Sequence[float | None],
    model: LoadedModel,
    request: ResolvedRequest,
    call: Call,
    images: Sequence[Sequence[EncodedImage]],
    start: Continuation,
) -> list[Answer | None]:
    """The answers of the samples whose risk is not too high; None for the others, which decoding never sees."""
    risk, items = request.risk, call.items
    chosen = [i for i, one in enumerate(risks) if risk is None or one is None or not risk.abstains(one)]
    begun = time.perf_counter()
    decoded: list[Answer] = []
    if chosen:
        decoded = decode_answers(
            model,
            request,
            [items[i] for i in chosen],
            [images[i] for i in chosen],
            start.of(chosen),
            long_factors=call.long_factors,
        )
    if risk is not None:  # its vectors came from the device before, so that no earlier work is waited for
        risk.decoding.add(
            answers=len(decoded),
            tokens=sum(len(answer.token_ids) for answer in decoded),
            seconds=time.perf_counter() - begun,
            left_out=len(items) - len(chosen),
        )
    by_index = dict(zip(chosen, decoded, strict=True))
    return [by_index.get(i) for i in range(len(items))]


def prefill_whole(
    model: LoadedModel,
    request: ResolvedRequest,
    items: Sequence[PreparedSample],
    images: Sequence[Sequence[EncodedImage]],
    padding_side: PaddingSide,
) -> Prefill:
    """Runs every whole prompt through the decoder, each in its own row."""
    rows = pad_rows(
        [item.prompt.token_ids for item in items],
        [item.prompt.layout for item in items],
        [item.positions for item in items],
        pad_id=model.pad_id,
        side=padding_side,
        device=model.device,
    )
    return prefill(model, rows, images, request.taps, keep_cache=request.answers)


def decode_answers(
    model: LoadedModel,
    request: ResolvedRequest,
    items: Sequence[PreparedSample],
    images: Sequence[Sequence[EncodedImage]],
    start: Continuation,
    *,
    long_factors: bool,
) -> list[Answer]:
    """Greedy answers from a prefill.

    An answer that reaches the longrope threshold is prefilled again with its prompt, so that every position uses the
    long factors, and continues from there.
    """
    limit = request.max_new_tokens
    threshold = None if long_factors else request.longrope_threshold
    settings = request.answer_settings
    answers = [Answer(item.prompt.token_ids) for item in items]
    decode_until(model, answers, start, settings=settings, max_new_tokens=limit, threshold=threshold)
    crossing = [i for i, answer in enumerate(answers) if answer.finish_reason is None]
    if crossing:
        token_ids = [(*items[i].prompt.token_ids, *answers[i].token_ids) for i in crossing]
        layouts = [
            replace(items[i].prompt.layout, prompt=Span(0, len(ids)))
            for i, ids in zip(crossing, token_ids, strict=True)
        ]
        positions = [continue_positions(items[i].positions, len(answers[i].token_ids)) for i in crossing]
        rows = pad_rows(token_ids, layouts, positions, pad_id=model.pad_id, side="left", device=model.device)
        refilled = prefill(model, rows, [images[i] for i in crossing], taps=(), keep_cache=True)
        crossed = continue_from(model, refilled)
        open_answers = [answers[i] for i in crossing]
        decode_until(model, open_answers, crossed, settings=settings, max_new_tokens=limit, threshold=None)
    return answers


def collect_vectors(
    request: ResolvedRequest,
    items: Sequence[PreparedSample],
    images: Sequence[Sequence[EncodedImage]],
    filled: Prefill,
) -> list[dict[str, np.ndarray]]:
    """Every sample's vectors by column name, in the order of the columns, each float32 [width].

    A column that is only read for its risk is there too.
    """
    columns: dict[str, np.ndarray] = {}
    if request.vision:
        columns[VISION_ONLY] = torch.stack([mean_over_patches(row) for row in images]).cpu().numpy()
    if request.processor_pooled_pixels:
        columns[PROCESSOR_POOLED_PIXELS] = torch.stack([pooled_pixels(item.images) for item in items]).numpy()
    columns |= {str(tap): filled.states[tap].cpu().numpy() for tap in request.taps}
    read = [request.risk.column] if request.risk and request.risk.column not in request.vectors else []
    names = [*request.vectors, *read]
    return [{name: columns[name][i] for name in names} for i in range(len(items))]


def make_outcome(
    model: LoadedModel,
    item: PreparedSample,
    vectors: dict[str, np.ndarray],
    answer: Answer | None = None,
    first_token: FirstToken | None = None,
    risk: float | None = None,
    rule: Risk | None = None,
) -> Outcome:
    """The sample's record; a Failure if a vector or a log-probability is not finite. `rule` gave it its `risk`."""
    sample, layout = item.sample, item.prompt.layout
    broken = [name for name, vector in vectors.items() if not np.isfinite(vector).all()]
    if answer is not None and not np.isfinite(answer.logprobs).all():
        broken.append("answer_logprobs")
    if rule is not None and risk is not None and not math.isfinite(risk):
        broken.append(rule.column)
    if broken:
        reason = f"{broken[0]} has values that are not finite in {model.dtype}; try dtype float32 or bfloat16."
        return Failure(sample.sample_id, sample.input_index, reason)
    known: dict[str, Any] = {}
    if first_token is not None:
        known = {
            "first_token_entropy": first_token.entropy,
            "first_token_top_ids": first_token.top_ids,
            "first_token_top_logprobs": first_token.top_logprobs,
        }
    if rule is not None and risk is not None:
        known |= {"risk": Double(risk), "finish_reason": "abstained" if rule.abstains(risk) else None}
    if answer is not None:
        known |= {
            "answer": model.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            "answer_token_ids": tuple(answer.token_ids),
            "answer_logprobs": tuple(answer.logprobs),
            "finish_reason": answer.finish_reason,
        }
    return Record(
        sample_id=sample.sample_id,
        input_index=sample.input_index,
        image_id=item.image_id,
        image=sample.image,
        question=sample.question,
        reference_answers=sample.reference_answers,
        extras=sample.extras,
        prompt_tokens=len(layout.prompt),
        image_tokens=layout.image_tokens,
        vision_token_index=layout.vision_token,
        query_token_index=layout.query_token,
        vectors=vectors,
        **known,
    )

"""One batch from prepared samples to records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from midsight.errors import BrokenOffError, first_line
from midsight.extraction.batches import rows_of, tokens_of
from midsight.extraction.budget import is_out_of_memory
from midsight.extraction.decode import (
    Answer,
    Continuation,
    FirstToken,
    continue_from,
    decode_until,
    describe_first_token,
)
from midsight.extraction.prefill import Prefill, encode_distinct, pad_rows, prefill
from midsight.extraction.prepare import PreparedSample, pooled_pixels, prepare
from midsight.extraction.request import PaddingSide, Plan
from midsight.extraction.sharing import find_shared, prefill_shared
from midsight.models.adapter import EncodedImage, continue_positions, mean_over_patches
from midsight.models.layout import Span
from midsight.models.loading import LoadedModel
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY, Record
from midsight.samples.sample import Failure, Sample

Outcome = Record | Failure


def extract_samples(
    model: LoadedModel, plan: Plan, samples: Sequence[Sample], *, padding_side: PaddingSide = "right"
) -> list[Outcome]:
    """One outcome for each sample, in their order, from one call of the model; one that cannot be is a Failure."""
    prepared = prepare(model, plan, samples)
    ready = [item for item in prepared if isinstance(item, PreparedSample)]
    failures = [item for item in prepared if isinstance(item, Failure)]
    outcomes = [*failures, *extract_prepared(model, plan, ready, padding_side=padding_side)]
    by_id = {outcome.sample_id: outcome for outcome in outcomes}
    return [by_id[sample.sample_id] for sample in samples]


def extract_prepared(
    model: LoadedModel,
    plan: Plan,
    ready: Sequence[PreparedSample],
    *,
    padding_side: PaddingSide = "right",
    on_memory: Callable[[int, bool], None] = lambda _tokens, _enough: None,
) -> list[Outcome]:
    """One outcome for each sample, those of one longrope regime in one call of the model.

    A call that fails as a whole is halved until the sample at fault stands alone. `on_memory` is told the tokens of
    a call of several that found no memory, and after that of each that did.
    """
    ran_out = False

    def extract(group: Sequence[PreparedSample]) -> list[Outcome]:
        nonlocal ran_out
        try:
            outcomes = extract_group(model, plan, group, padding_side)
        except Exception as error:
            if is_out_of_memory(error) and len(group) > 1:
                ran_out = True
                on_memory(tokens_of(rows_of(group, plan)), False)
            raise
        if ran_out:
            on_memory(tokens_of(rows_of(group, plan)), True)
        return outcomes

    return [
        outcome
        for group in split_by_regime(ready, model.adapter.longrope_border(model.config))
        for outcome in isolate_failures(group, extract, lambda: still_works(model.device))
    ]


def split_by_regime(prepared: Sequence[PreparedSample], border: int | None) -> list[list[PreparedSample]]:
    """Prompts that use the short rotary factors, and those that use the long ones; never both in one call."""
    if border is None:
        groups = [list(prepared)]
    else:
        groups = [[p for p in prepared if (len(p.prompt.token_ids) > border) is is_long] for is_long in (False, True)]
    return [group for group in groups if group]


def still_works(device: torch.device) -> bool:
    """Whether the device computes; after some errors a CUDA device does not until its process ends."""
    try:
        return bool(torch.ones(1, device=device).sum().item() == 1)
    except Exception:  # a lost device raises many types
        return False


def isolate_failures(
    group: Sequence[PreparedSample],
    extract: Callable[[Sequence[PreparedSample]], list[Outcome]],
    device_works: Callable[[], bool],
) -> list[Outcome]:
    """Calls `extract`; where it raises, tries again with halves down to single samples.

    Raises BrokenOffError where the device has been lost: the samples are not at fault then.
    """
    try:
        return extract(group)
    except Exception as error:  # whatever one sample does to the model, the others are extracted
        if not device_works():
            raise BrokenOffError(
                f"The device was lost ({type(error).__name__}: {first_line(error)}); the same command goes on from "
                "what is stored."
            ) from error
        if len(group) == 1:
            sample = group[0].sample
            reason = f"The model failed on this sample: {type(error).__name__}: {first_line(error)}."
            return [Failure(sample.sample_id, sample.input_index, reason)]
    middle = len(group) // 2
    return [
        *isolate_failures(group[:middle], extract, device_works),
        *isolate_failures(group[middle:], extract, device_works),
    ]


@torch.inference_mode()
def extract_group(
    model: LoadedModel, plan: Plan, group: Sequence[PreparedSample], padding_side: PaddingSide
) -> list[Outcome]:
    """Samples of one longrope regime: one prefill for all, then their answers."""
    images = encode_distinct(model, [item.images for item in group])
    shared = find_shared(model, group) if plan.share else None
    if shared is not None:
        filled = prefill_shared(model, group, images, shared, plan.taps, padding_side)
    else:
        filled = prefill_whole(model, plan, group, images, padding_side)
    vectors = collect_vectors(plan, group, images, filled)
    if not plan.answers:
        return [make_outcome(model, item, vectors[i]) for i, item in enumerate(group)]
    start = continue_from(model, filled)
    first_tokens = describe_first_token(start.logits)
    answers = decode_answers(model, plan, group, images, start)
    return [make_outcome(model, item, vectors[i], answers[i], first_tokens[i]) for i, item in enumerate(group)]


def prefill_whole(
    model: LoadedModel,
    plan: Plan,
    group: Sequence[PreparedSample],
    images: Sequence[Sequence[EncodedImage]],
    padding_side: PaddingSide,
) -> Prefill:
    """Every prompt through the decoder, whole."""
    rows = pad_rows(
        [item.prompt.token_ids for item in group],
        [item.prompt.layout for item in group],
        [item.positions for item in group],
        pad_id=model.pad_id,
        side=padding_side,
        device=model.device,
    )
    return prefill(model, rows, images, plan.taps, keep_cache=plan.answers)


def decode_answers(
    model: LoadedModel,
    plan: Plan,
    group: Sequence[PreparedSample],
    images: Sequence[Sequence[EncodedImage]],
    start: Continuation,
) -> list[Answer]:
    """Greedy answers from a prefill.

    A row that reaches the longrope border is prefilled again with all it has, so that every
    position uses the long factors, and goes on from there.
    """
    border = model.adapter.longrope_border(model.config)
    answers = [Answer() for _ in group]
    decode_until(model, answers, start, max_new_tokens=plan.max_new_tokens, border=border)
    at_border = [i for i, answer in enumerate(answers) if answer.finish_reason is None]
    if at_border:
        token_ids = [(*group[i].prompt.token_ids, *answers[i].token_ids) for i in at_border]
        layouts = [
            replace(group[i].prompt.layout, prompt=Span(0, len(ids)))
            for i, ids in zip(at_border, token_ids, strict=True)
        ]
        positions = [continue_positions(group[i].positions, len(answers[i].token_ids)) for i in at_border]
        rows = pad_rows(token_ids, layouts, positions, pad_id=model.pad_id, side="left", device=model.device)
        refilled = prefill(model, rows, [images[i] for i in at_border], taps=(), keep_cache=True)
        crossed = continue_from(model, refilled)
        decode_until(model, [answers[i] for i in at_border], crossed, max_new_tokens=plan.max_new_tokens, border=None)
    return answers


def collect_vectors(
    plan: Plan, group: Sequence[PreparedSample], images: Sequence[Sequence[EncodedImage]], filled: Prefill
) -> list[dict[str, np.ndarray]]:
    """Every sample's vectors by column name, in the order of the columns, each float32 [width]."""
    columns: dict[str, np.ndarray] = {}
    if plan.vision:
        columns[VISION_ONLY] = torch.stack([mean_over_patches(row) for row in images]).cpu().numpy()
    if plan.processor_pooled_pixels:
        columns[PROCESSOR_POOLED_PIXELS] = torch.stack([pooled_pixels(item.images) for item in group]).numpy()
    columns |= {str(tap): filled.states[tap].cpu().numpy() for tap in plan.taps}
    return [{name: columns[name][i] for name in plan.vectors} for i in range(len(group))]


def make_outcome(
    model: LoadedModel,
    item: PreparedSample,
    vectors: dict[str, np.ndarray],
    answer: Answer | None = None,
    first_token: FirstToken | None = None,
) -> Outcome:
    """The sample's record; a Failure where a vector or a log-probability is not finite."""
    sample, layout = item.sample, item.prompt.layout
    broken = [name for name, vector in vectors.items() if not np.isfinite(vector).all()]
    if answer is not None and not np.isfinite(answer.logprobs).all():
        broken.append("answer_logprobs")
    if broken:
        reason = f"{broken[0]} has values that are not finite in {model.dtype}; try --dtype float32 or bfloat16."
        return Failure(sample.sample_id, sample.input_index, reason)
    answered = {}
    if answer is not None and first_token is not None:
        answered = {
            "answer": model.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            "answer_token_ids": tuple(answer.token_ids),
            "answer_logprobs": tuple(answer.logprobs),
            "finish_reason": answer.finish_reason,
            "first_token_entropy": first_token.entropy,
            "first_token_top_ids": first_token.top_ids,
            "first_token_top_logprobs": first_token.top_logprobs,
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
        **answered,
    )

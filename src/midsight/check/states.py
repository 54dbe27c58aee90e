"""Hidden states at every layer and position, in every batch, against transformers' own full forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midsight.check.check import Check
from midsight.check.full_forward import FullForward, largest_error, relative_error, worst
from midsight.check.subject import Subject, extract_together, record_of
from midsight.checkpoints.loading import LoadedModel
from midsight.checkpoints.quiet import quiet_transformers
from midsight.extraction.extract_call import extract_samples
from midsight.extraction.prefill import continue_prefill, encode_distinct, pad_rows, prefill
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import PaddingSide, padding_sides
from midsight.extraction.sharing import pad_prefixes
from midsight.families.inputs import continue_positions
from midsight.prompts.token_layout import Span, TokenLayout
from midsight.records import Record
from midsight.samples.sample import Sample
from midsight.taps.tap import POSITIONS, Tap

LIMIT_BETWEEN_KERNELS, IN_16_BITS = 1e-4, 0.15
"""Largest relative errors between two attention kernels, in float32 and in 16 bits. Kernels sum in different
orders, in every layer; the demo checkpoint shows 0.07 in 16 bits. A vision tower turned causal shows 0.19 and more."""


def check_taps(subject: Subject) -> list[Check]:
    """The taps of each position, at every layer, against the hidden states of the full forward."""
    return [
        Check(
            f"{position} at every layer and transformers' full forward",
            tap_error(subject, subject.alone, subject.prepared, subject.forwards, (position,)),
            subject.limit,
        )
        for position in POSITIONS
    ]


def tap_error(
    subject: Subject,
    records: Sequence[Record],
    prepared: Sequence[PreparedSample],
    forwards: Sequence[FullForward],
    positions: Sequence[str] = POSITIONS,
) -> float:
    """The largest relative error of the taps at some positions against full forwards of the same samples."""
    return worst(
        relative_error(record.vectors[str(tap)], expected_state(subject.model, tap, item, forward))
        for tap in subject.request.taps
        if tap.position in positions
        for record, item, forward in zip(records, prepared, forwards, strict=True)
    )


def expected_state(model: LoadedModel, tap: Tap, item: PreparedSample, forward: FullForward) -> np.ndarray:
    """What the full forward has at a tap, found by the token ids alone."""
    image_token_id = model.tokenizer.convert_tokens_to_ids(model.family.prompt.image_token)
    states = forward.last_residual if tap.stage == "residual" else forward.hidden_states[tap.layer + 1]
    image = torch.tensor(item.prompt.token_ids) == image_token_id
    at: dict[str, Callable[[], Tensor]] = {
        "vision_token": lambda: states[image.nonzero()[-1, 0]],
        "query_token": lambda: states[-1],
        "image_mean": lambda: states[image].mean(dim=0),
    }
    return at[tap.position]().numpy()


def check_before_image(subject: Subject) -> list[Check]:
    """States of the tokens before the image in the full forwards of two images; no token there can know the image.

    Prompts that start with different tokens are not compared.
    """
    one, other = (tokens_before_image(item) for item in subject.prepared[:2])
    if one != other or not one:
        return []
    first, second = (forward.hidden_states[:, : len(one)].numpy() for forward in subject.forwards[:2])
    return [Check("states before the image, and with another image", relative_error(first, second), subject.limit)]


def tokens_before_image(item: PreparedSample) -> tuple[int, ...]:
    """Token ids of a prompt before its first image token, and before the first that image tokens read."""
    starts = [item.prompt.layout.image[0].start, *([item.reads_ahead.start] if item.reads_ahead else [])]
    return item.prompt.token_ids[: min(starts)]


def check_batches(subject: Subject) -> list[Check]:
    """All samples in one batch, in either order and padded on either side, against each sample alone.

    On the left only if the model keeps a state, which later padding would change.
    """

    def batch_error(step: int, side: PaddingSide) -> float:
        records = extract_together(subject.model, subject.without_answers, subject.prepared[::step], side)
        return worst(map(largest_error, records, subject.alone[::step]))

    limit, side = subject.limit, padding_sides(subject.model)[0]
    return [
        Check("one batch, padded left, and each sample alone", batch_error(1, "left"), limit),
        Check(f"one batch in reverse order, padded {side}, and each alone", batch_error(-1, side), limit),
    ]


def check_prefix(subject: Subject) -> list[Check]:
    """States at the last image token with another question; they are equal if the prefix is declared shared."""
    taps = [str(tap) for tap in subject.request.taps if tap.position == "vision_token"]
    others = [
        Sample(sample.sample_id, sample.input_index, sample.images, f"{sample.question} And what else is there?")
        for sample in subject.samples
    ]
    model, request = subject.model, subject.without_answers
    asked_otherwise = [record_of(extract_samples(model, request, [other])[0]) for other in others]
    errors = [
        relative_error(other.vectors[name], record.vectors[name])
        for other, record in zip(asked_otherwise, subject.alone, strict=True)
        for name in taps
    ]
    shared = model.family.decoder.shares_image_prefix
    return [Check("image states under another question", worst(errors), subject.limit, must_differ=not shared)]


@torch.inference_mode()
def check_continued(subject: Subject) -> list[Check]:
    """Questions on the cache of the image's prefix, one and three at a time, against the whole prompt at once.

    A prefix that is not declared shared is not measured, nor is one whose cache is a state. Neither is a prompt that
    crosses the longrope threshold after its prefix, because the rotary factors of the two differ.
    """
    model, limit = subject.model, subject.limit
    threshold = model.longrope_threshold
    if not model.family.decoder.shares_image_prefix or model.keeps_state:
        return []
    taps = [tap for tap in subject.request.taps if tap.position == "query_token"]
    alone_errors, together_errors = [], []
    for record, item in zip(subject.alone, subject.prepared, strict=True):
        cut = item.prefix_length
        rest = tuple(item.prompt.token_ids[cut:])
        # the longest of the three prompts below contains the question twice
        longest = cut + 2 * len(rest)
        if threshold is not None and cut <= threshold < longest:
            continue
        expected = {tap: record.vectors[str(tap)] for tap in taps}
        for questions, errors in (([rest], alone_errors), ([rest[:1], rest, (*rest, *rest)], together_errors)):
            states = ask_on_prefix(model, item, questions, taps)
            own = questions.index(rest)
            errors.append(worst(relative_error(states[tap][own].cpu().numpy(), expected[tap]) for tap in taps))
    if not alone_errors:
        return []
    return [
        Check("a question on the image's prefix and the whole prompt at once", worst(alone_errors), limit),
        Check("several questions on one prefix and the whole prompt at once", worst(together_errors), limit),
    ]


def ask_on_prefix(
    model: LoadedModel, item: PreparedSample, questions: Sequence[Sequence[int]], taps: Sequence[Tap]
) -> Mapping[Tap, Tensor]:
    """States of several questions on the cache of one image's prefix: float32 [questions, hidden size] by tap."""
    cut = item.prefix_length
    begun = prefill(
        model, pad_prefixes(model, [item], "left"), encode_distinct(model, [item.images]), taps=(), keep_cache=True
    )
    rest = pad_rows(
        questions,
        [TokenLayout(Span(0, len(question)), image=(), question=Span(0, 0)) for question in questions],
        [continue_positions(item.positions[:, :cut], len(question))[:, cut:] for question in questions],
        pad_id=model.pad_id,
        side="right",
        device=model.device,
        rows=[0] * len(questions),
    )
    return continue_prefill(model, begun, rest, taps).states


def check_eager(subject: Subject) -> list[Check]:
    """The attention kernel in use against eager attention."""
    model = subject.model
    in_use = kernels_of(model.config)
    with quiet_transformers():
        model.hf_model.set_attn_implementation("eager")
        try:
            outcomes = [extract_samples(model, subject.without_answers, [sample])[0] for sample in subject.samples]
        finally:
            model.hf_model.set_attn_implementation(in_use)
    largest = worst(map(largest_error, subject.alone, map(record_of, outcomes)))
    between_kernels = LIMIT_BETWEEN_KERNELS if model.dtype == torch.float32 else IN_16_BITS
    return [Check(f"{model.attention} and eager attention", largest, max(subject.limit, between_kernels))]


def kernels_of(config: Any) -> dict[str, Any]:
    """The attention kernel of each part of a model, as `set_attn_implementation` takes them."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {
        "": config._attn_implementation,
        **{name: kernels_of(part) for name, part in parts.items() if part is not None},
    }

"""check_family: proves a family's declarations on the real tensors of a loaded model.

The reference is transformers' own full forward with output_hidden_states: one sample at a time, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from midsight.check.answers import check_answers
from midsight.check.check import Check
from midsight.check.full_forward import FullForward, full_forward, largest_error, relative_error, worst
from midsight.check.processor_prompt import processor_token_ids
from midsight.check.vision import check_useful_patches, check_vision_features
from midsight.checkpoints.loading import LoadedModel
from midsight.checkpoints.lora import loras_off
from midsight.checkpoints.quiet import quiet_transformers
from midsight.errors import SampleError
from midsight.extraction.extract_call import extract_samples
from midsight.extraction.model import Model
from midsight.extraction.prefill import continue_prefill, encode_distinct, pad_rows, prefill
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import PaddingSide, Request, ResolvedRequest, resolve
from midsight.extraction.sharing import pad_prefixes
from midsight.families.family import decoder_layers
from midsight.families.inputs import continue_positions
from midsight.prompts.token_layout import Span, TokenLayout
from midsight.records import Record
from midsight.samples.sample import Failure, Sample
from midsight.taps.tap import POSITIONS, Tap

LORA_DIFFERS_BY = 1e-3
"""Smallest relative error between the model with and without its LoRA that passes."""

LIMIT_BETWEEN_KERNELS, IN_16_BITS = 1e-4, 0.15
"""Largest relative errors between two attention kernels, in float32 and in 16 bits. Kernels sum in different
orders, in every layer; the demo checkpoint shows 0.07 in 16 bits. A vision tower turned causal shows 0.19 and more."""


def check_family(
    model: Model,
    samples: Sequence[Sample],
    *,
    limit: float = 1e-5,
    max_new_tokens: int = 12,
    prompt_template: str | Path = "auto",
) -> tuple[Check, ...]:
    """Measures every declaration of the model's family on samples.

    Args:
        model: A freshly loaded model. transformers returns hidden states only if the model's first full forward asks
            for them.
        samples: Two or more, of different images.
        limit: Largest relative error that passes; 1e-5 is for float32 on a CPU.
        max_new_tokens: Maximum number of new tokens in the answers that are compared.
        prompt_template: `auto`, `raw`, or a file with a chat template, as in Request.

    Returns:
        The checks, with figures and limits.

    Raises:
        SampleError: A sample cannot be extracted.
        MidsightError: The folder has no chat template, or `prompt_template` cannot be used.
    """
    loaded = model.loaded
    everything = Request(
        layers="all",
        residual=True,
        positions=POSITIONS,
        max_new_tokens=max_new_tokens,
        prompt_template=prompt_template,
    )
    request = resolve(everything, loaded)
    prepared = [_usable(item) for item in prepare(loaded, request, samples)]
    forwards = [full_forward(loaded, item) for item in prepared]
    alone = [_record(extract_samples(loaded, request, [sample])[0]) for sample in samples]
    no_answers = replace(request, answers=False)
    checks = [
        Check("decoder layers declared and configured, difference", _layer_difference(loaded), 0),
        Check("image token's id in config and tokenizer, difference", _token_difference(loaded), 0),
        Check("known bugs left to fix", len(loaded.family.stored.fixes(loaded.hf_model)), 0),
        *check_prompts(loaded, request, prepared),
        *check_taps(loaded, request, alone, prepared, forwards, limit),
        check_vision_features(loaded, alone, prepared, forwards, limit),
        *check_useful_patches(loaded, prepared),
        *check_batches(loaded, no_answers, samples, alone, limit),
        check_prefix(loaded, no_answers, samples, alone, limit),
        *check_continued(loaded, no_answers, alone, prepared, limit),
        check_eager(loaded, no_answers, samples, alone, limit),
        check_answers(loaded, request, alone, prepared),
    ]
    if loaded.lora == "unmerged":
        checks.append(check_lora(loaded, no_answers, samples, alone))
    return tuple(checks)


def check_prompts(model: LoadedModel, request: ResolvedRequest, prepared: Sequence[PreparedSample]) -> list[Check]:
    """The token ids of each prompt against those of the folder's own processor.

    Nothing is measured if transformers makes no processor from the folder.
    """
    theirs = [processor_token_ids(model, request, item.sample) for item in prepared]
    if None in theirs:
        return []
    different = sum(list(item.prompt.token_ids) != ids for item, ids in zip(prepared, theirs, strict=True))
    return [Check("prompts whose token ids differ from the processor's own", different, 0)]


def check_taps(
    model: LoadedModel,
    request: ResolvedRequest,
    records: Sequence[Record],
    prepared: Sequence[PreparedSample],
    forwards: Sequence[FullForward],
    limit: float,
) -> list[Check]:
    """The taps of each position, at every layer, against the hidden states of the full forward."""
    image_token_id = model.tokenizer.convert_tokens_to_ids(model.family.prompt.image_token)

    def expected(tap: Tap, item: PreparedSample, forward: FullForward) -> np.ndarray:
        states = forward.last_residual if tap.stage == "residual" else forward.hidden_states[tap.layer + 1]
        image = torch.tensor(item.prompt.token_ids) == image_token_id
        at: dict[str, Callable[[], Tensor]] = {
            "vision_token": lambda: states[image.nonzero()[-1, 0]],
            "query_token": lambda: states[-1],
            "image_mean": lambda: states[image].mean(dim=0),
        }
        return at[tap.position]().numpy()

    def worst_at(position: str) -> float:
        return worst(
            relative_error(record.vectors[str(tap)], expected(tap, item, forward))
            for tap in request.taps
            if tap.position == position
            for record, item, forward in zip(records, prepared, forwards, strict=True)
        )

    return [
        Check(f"{position} at every layer and the full forward", worst_at(position), limit) for position in POSITIONS
    ]


def check_batches(
    model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample], alone: Sequence[Record], limit: float
) -> list[Check]:
    """All samples in one batch, in either order and padded on either side, against each sample alone."""

    def batch_error(order: Sequence[Sample], side: PaddingSide) -> float:
        by_id = {record.sample_id: record for record in alone}
        outcomes = [_record(outcome) for outcome in extract_samples(model, request, order, padding_side=side)]
        return worst(largest_error(outcome, by_id[outcome.sample_id]) for outcome in outcomes)

    return [
        Check("one batch, padded left, and each sample alone", batch_error(samples, "left"), limit),
        Check("one batch in reverse order, padded right, and each alone", batch_error(samples[::-1], "right"), limit),
    ]


def check_prefix(
    model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample], alone: Sequence[Record], limit: float
) -> Check:
    """States at the last image token with another question; they are equal if the prefix is declared shared."""
    others = [
        Sample(sample.sample_id, sample.input_index, sample.images, f"{sample.question} And what else is there?")
        for sample in samples
    ]
    taps = [str(tap) for tap in request.taps if tap.position == "vision_token"]
    asked_otherwise = [_record(extract_samples(model, request, [other])[0]) for other in others]
    errors = [
        relative_error(other.vectors[name], record.vectors[name])
        for other, record in zip(asked_otherwise, alone, strict=True)
        for name in taps
    ]
    if model.family.decoder.shares_image_prefix:
        return Check("image states under another question", worst(errors), limit)
    return Check("image states under another question", worst(errors), limit, must_differ=True)


@torch.inference_mode()
def check_continued(
    model: LoadedModel,
    request: ResolvedRequest,
    alone: Sequence[Record],
    prepared: Sequence[PreparedSample],
    limit: float,
) -> list[Check]:
    """Questions on the cache of the image's prefix, one and three at a time, against the whole prompt at once.

    A prefix that is not declared shared is not measured. Neither is a prompt that crosses the longrope threshold after
    its prefix, because the rotary factors of the two differ.
    """
    threshold = model.longrope_threshold
    if not model.family.decoder.shares_image_prefix:
        return []
    taps = [tap for tap in request.taps if tap.position == "query_token"]
    alone_errors, together_errors = [], []
    for record, item in zip(alone, prepared, strict=True):
        cut = item.prompt.layout.vision_token + 1
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
        Check("a question on the image's prefix and the full forward", worst(alone_errors), limit),
        Check("several questions on one prefix and the full forward", worst(together_errors), limit),
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


def check_eager(
    model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample], alone: Sequence[Record], limit: float
) -> Check:
    """The attention kernel in use against eager attention."""
    with quiet_transformers():
        model.hf_model.set_attn_implementation("eager")
        try:
            eager = [_record(extract_samples(model, request, [sample])[0]) for sample in samples]
        finally:
            model.hf_model.set_attn_implementation(model.attention)
    largest = worst(map(largest_error, alone, eager))
    between_kernels = LIMIT_BETWEEN_KERNELS if model.dtype == torch.float32 else IN_16_BITS
    return Check(f"{model.attention} and eager attention", largest, max(limit, between_kernels))


def check_lora(
    model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample], alone: Sequence[Record]
) -> Check:
    """The LoRA beside the weights, off and on; the states have to differ."""
    with loras_off(model.hf_model):
        without = [_record(extract_samples(model, request, [sample])[0]) for sample in samples]
    return compare_lora(without, alone)


def compare_lora(without: Sequence[Record], with_lora: Sequence[Record]) -> Check:
    """The vectors of the same samples without and with the LoRA; they have to differ."""
    smallest = float(np.min([largest_error(*pair) for pair in zip(without, with_lora, strict=True)]))
    return Check("LoRA off and on", smallest, LORA_DIFFERS_BY, must_differ=True)


def _usable(item: PreparedSample | Failure) -> PreparedSample:
    if isinstance(item, Failure):
        raise SampleError(f"Sample {item.sample_id} cannot be prepared: {item.reason}")
    return item


def _record(outcome: Record | Failure) -> Record:
    if isinstance(outcome, Failure):
        raise SampleError(f"Sample {outcome.sample_id} cannot be extracted: {outcome.reason}")
    return outcome


def _layer_difference(model: LoadedModel) -> int:
    return abs(len(decoder_layers(model.hf_model, model.family)) - model.n_layers)


def _token_difference(model: LoadedModel) -> int:
    declared = model.family.prompt.image_token_id(model.config)
    return abs(declared - model.tokenizer.convert_tokens_to_ids(model.family.prompt.image_token))

"""transformers' greedy `generate`, and midsight's answers against it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from midsight.check.check import Check, count
from midsight.check.full_forward import transformers_inputs, worst
from midsight.checkpoints.generation import NOT_APPLIED
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import ResolvedRequest
from midsight.records import Record

NEAR_TIE_NATS = 0.25
"""Lead of the likeliest token that rounding to 16 bits may reverse: bfloat16 logits from 16 to 32 are 1/8 apart."""
NATS_IN_16_BITS = 0.5
"""Largest difference of log-probabilities between two shapes of a batch, in 16 bits."""


@dataclass(frozen=True)
class Generated:
    """What `generate` gives for one prompt if no token ends the answer."""

    token_ids: tuple[int, ...]
    """As many as were asked for, or fewer if the generation config ends the answer."""
    logits: Tensor
    """float32 [tokens, vocabulary] on the CPU: what each token was chosen from."""

    def until(self, stop_ids: Sequence[int]) -> tuple[int, ...]:
        """The answer up to its first stop token, included."""
        ends = [i + 1 for i, token_id in enumerate(self.token_ids) if token_id in stop_ids]
        return self.token_ids[: ends[0]] if ends else self.token_ids

    def logprobs(self, step: int) -> Tensor:
        """Log-probabilities of the token after `step` others, float64 [vocabulary]."""
        return self.logits[step].double().log_softmax(dim=-1)


@torch.inference_mode()
def generate(model: LoadedModel, request: ResolvedRequest, item: PreparedSample) -> Generated:
    """Runs `generate` on one prompt, greedily, with what the folder's generation config changes about greedy answers.

    Without a cache if the answer crosses the longrope threshold, where transformers' cache goes wrong.
    """
    hf_model, threshold = model.hf_model, model.longrope_threshold
    prompt_tokens = len(item.prompt.token_ids)
    crosses = threshold is not None and prompt_tokens <= threshold < prompt_tokens + request.max_new_tokens
    published = hf_model.generation_config
    own = copy.deepcopy(published) if request.answer_settings.values else type(published)()
    own.update(do_sample=False, **NOT_APPLIED)
    hf_model.generation_config = own
    try:
        output = hf_model.generate(
            **transformers_inputs(model, item),
            attention_mask=torch.ones((1, prompt_tokens), dtype=torch.int64, device=model.device),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            use_cache=not crosses,
            pad_token_id=model.pad_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        hf_model.generation_config = published
    token_ids = output.sequences[0, prompt_tokens:].tolist()
    return Generated(tuple(token_ids), torch.cat(output.logits).float().cpu())


def check_answers(
    model: LoadedModel, records: Sequence[Record], generated: Sequence[Generated], limit: float
) -> list[Check]:
    """Answers of samples alone against those of `generate`, cut at the model's stop ids, and its logits."""
    pairs = list(zip(records, generated, strict=True))
    return [
        count("answers that differ from transformers' generate", sum(not same_ids(model, *pair) for pair in pairs)),
        count(
            "texts and finish reasons that do not follow from generate's tokens",
            sum(not same_ending(model, *pair) for pair in pairs),
        ),
        Check(
            "log-probabilities of answers and those of generate's logits",
            worst(logprob_error(*pair) for pair in pairs),
            limit_in_nats(model, limit),
            unit="nats",
        ),
        Check(
            "entropy and ten likeliest first tokens, and those of generate's logits",
            worst(first_token_error(*pair) for pair in pairs),
            limit_in_nats(model, limit),
            unit="nats",
        ),
    ]


def check_answers_together(
    what: str, model: LoadedModel, records: Sequence[Record], generated: Sequence[Generated], limit: float
) -> list[Check]:
    """The same comparison for samples that went through the model together, in two checks."""
    pairs = list(zip(records, generated, strict=True))
    different = sum(not (same_ids(model, *pair) and same_ending(model, *pair)) for pair in pairs)
    errors = [error for pair in pairs for error in (logprob_error(*pair), first_token_error(*pair))]
    return [
        count(f"{what}: answers that differ from transformers' generate", different),
        Check(
            f"{what}: log-probabilities, entropy and likeliest tokens, and those of generate's logits",
            worst(errors),
            limit_in_nats(model, limit),
            unit="nats",
        ),
    ]


def limit_in_nats(model: LoadedModel, limit: float) -> float:
    """Largest difference of log-probabilities for a largest relative error of vectors."""
    return 10 * limit if model.dtype == torch.float32 else NATS_IN_16_BITS


def same_ids(model: LoadedModel, record: Record, generated: Generated) -> bool:
    """Whether the record's answer is that of `generate`, up to a token where `generate` saw a near-tie."""
    near_tie = 0.0 if model.dtype == torch.float32 else NEAR_TIE_NATS
    ours, theirs = record.answer_token_ids or (), generated.until(model.stop_ids)
    for step, (our_id, their_id) in enumerate(zip(ours, theirs, strict=False)):
        if our_id != their_id:
            logits = generated.logits[step]
            return (logits.max() - logits[[our_id, their_id]].min()).item() <= near_tie
    return len(theirs) == len(ours)


def same_ending(model: LoadedModel, record: Record, generated: Generated) -> bool:
    """Whether text and finish reason are those of the answer's tokens.

    The text is decoded from what `generate` gave where the tokens are the same.
    """
    ours, theirs = record.answer_token_ids or (), generated.until(model.stop_ids)
    token_ids = theirs if len(ours) == len(theirs) else ours
    text = model.tokenizer.batch_decode([list(token_ids)], skip_special_tokens=True)[0]
    stops = bool(ours) and ours[-1] in model.stop_ids
    return record.finish_reason == ("stop" if stops else "length") and (record.answer == text or ours != theirs)


def logprob_error(record: Record, generated: Generated) -> float:
    """Largest difference of log-probabilities, over the tokens that both sides share; in nats."""
    ids, logprobs = record.answer_token_ids or (), record.answer_logprobs or ()
    if not ids or len(ids) != len(logprobs):
        return float("inf")
    errors = []
    for step, (our_id, their_id, logprob) in enumerate(zip(ids, generated.token_ids, logprobs, strict=False)):
        errors.append(abs(logprob - generated.logprobs(step)[our_id].item()))
        if our_id != their_id:
            break
    return worst(errors)


def first_token_error(record: Record, generated: Generated) -> float:
    """Largest difference of the first token's entropy and of the ten largest log-probabilities, in nats."""
    expected = generated.logprobs(0)
    entropy = -(expected.exp() * expected).nan_to_num().sum().item()
    ids, logprobs = list(record.first_token_top_ids or ()), torch.tensor(record.first_token_top_logprobs or ())
    largest = expected.topk(min(10, len(expected))).values
    if len(set(ids)) != len(largest) or record.first_token_entropy is None:
        return float("inf")
    return worst(
        [
            abs(record.first_token_entropy - entropy),
            (logprobs - largest).abs().max().item(),
            (logprobs - expected[ids]).abs().max().item(),
        ]
    )

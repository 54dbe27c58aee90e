"""midsight's answers against transformers' greedy `generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from midsight.check.check import Check
from midsight.check.full_forward import transformers_inputs
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import ResolvedRequest
from midsight.records import Record

NEAR_TIE_NATS = 0.25
"""Lead of the likeliest token that rounding to 16 bits may reverse: bfloat16 logits from 16 to 32 are 1/8 apart."""


@torch.inference_mode()
def check_answers(
    model: LoadedModel, request: ResolvedRequest, records: Sequence[Record], prepared: Sequence[PreparedSample]
) -> Check:
    """The answers in the records against those of `generate` for the same prompts.

    `generate` decodes greedily here, whatever the folder's generation config asks for.
    """
    published = model.hf_model.generation_config
    model.hf_model.generation_config = type(published)()
    try:
        different = sum(not is_same_answer(model, request, *pair) for pair in zip(records, prepared, strict=True))
    finally:
        model.hf_model.generation_config = published
    return Check("answers that differ from generate", different, 0)


def is_same_answer(model: LoadedModel, request: ResolvedRequest, record: Record, item: PreparedSample) -> bool:
    """Whether the record's answer is that of `generate`, up to a token where `generate` saw a near-tie."""
    threshold = model.longrope_threshold
    near_tie = 0.0 if model.dtype == torch.float32 else NEAR_TIE_NATS
    prompt_tokens = len(item.prompt.token_ids)
    crosses = threshold is not None and prompt_tokens <= threshold < prompt_tokens + request.max_new_tokens
    generated = model.hf_model.generate(
        **transformers_inputs(model, item),
        attention_mask=torch.ones((1, prompt_tokens), dtype=torch.int64, device=model.device),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        use_cache=not crosses,
        eos_token_id=list(model.stop_ids),
        pad_token_id=model.pad_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    ours, theirs = record.answer_token_ids or (), generated.sequences[0, prompt_tokens:].tolist()
    for our_id, their_id, logits in zip(ours, theirs, generated.logits, strict=False):
        if our_id != their_id:
            return (logits[0].max() - logits[0, [our_id, their_id]].min()).item() <= near_tie
    return len(theirs) == len(ours)

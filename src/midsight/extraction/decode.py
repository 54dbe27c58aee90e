"""Greedy answers, decoded on from a prefill; each row stops for itself and then leaves the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from midsight.extraction.prefill import NOBODY, Prefill, end_states, pad_rows, run_on_cache
from midsight.models.adapter import KVCache, submodule
from midsight.models.layout import Span, TokenLayout
from midsight.models.loading import LoadedModel
from midsight.records import FinishReason

TOP_TOKENS = 10


@dataclass
class Answer:
    """What one row has generated so far."""

    token_ids: list[int] = field(default_factory=list)
    """Generated tokens, the stop token included."""
    logprobs: list[float] = field(default_factory=list)
    """Log-softmax of the raw logits in float32, one per token."""
    finish_reason: FinishReason | None = None
    """None while the row is still open."""


@dataclass(frozen=True)
class FirstToken:
    """The model's own confidence: how the first token's distribution looks."""

    entropy: float
    """In nats."""
    top_ids: tuple[int, ...]
    """The ten likeliest tokens, likeliest first."""
    top_logprobs: tuple[float, ...]
    """Their log-probabilities."""


@dataclass(frozen=True)
class Continuation:
    """What the next tokens of a batch are computed from."""

    logits: Tensor
    """float32 [answers, vocabulary], after each one's last token."""
    cache: KVCache
    """Keys and values of every layer, a row for each of `owners`."""
    owners: Tensor
    """int64 [rows, tokens in the cache]: whose each token is."""
    names: list[int]
    """Of each answer, how `owners` calls it."""
    rows: list[int]
    """Of each answer, its row in the cache."""
    lengths: list[int]
    """Of each answer, tokens up to its last one, padding not counted."""
    position_offsets: list[int]
    """Of each answer: position of its next token, less its tokens."""
    later: Mapping[str, Tensor]
    """What the decoder takes in every step beside tokens, rows first."""


@dataclass
class OpenRows:
    """The answers of a batch that are still open, between two steps."""

    answers: list[Answer]
    """What each has generated."""
    state: Continuation
    """What goes on from there."""

    def keep(self, kept: Sequence[int]) -> None:
        """Drops all answers but those at the indices `kept`, and the cache's rows that none of these lies in."""
        if len(kept) == len(self.answers):
            return
        state = self.state
        names = [state.names[i] for i in kept]
        left = sorted({state.rows[i] for i in kept})
        rows = torch.tensor(left, device=state.owners.device, dtype=torch.int64)
        if kept and len(left) < len(state.owners):
            state.cache.batch_select_indices(rows)
        owners = state.owners[rows]
        gone = (owners >= 0) & ~torch.isin(owners, torch.tensor(names, device=owners.device, dtype=torch.int64))
        self.answers = [self.answers[i] for i in kept]
        self.state = Continuation(
            state.logits[list(kept)],
            state.cache,
            owners.masked_fill(gone, NOBODY),
            names,
            [left.index(state.rows[i]) for i in kept],
            [state.lengths[i] for i in kept],
            [state.position_offsets[i] for i in kept],
            {name: value[rows] for name, value in state.later.items()},
        )


def continue_from(model: LoadedModel, filled: Prefill) -> Continuation:
    """The first tokens' logits of a prefill that kept its cache; raises ValueError for one that did not."""
    if filled.cache is None:
        raise ValueError("This prefill kept no cache to decode on from; call prefill with keep_cache.")
    return Continuation(
        logits=submodule(model.hf_model, model.adapter.lm_head)(filled.end_states).float(),
        cache=filled.cache,
        owners=filled.owners,
        names=list(range(len(filled.rows))),
        rows=list(filled.rows),
        lengths=list(filled.lengths),
        position_offsets=list(filled.position_offsets),
        later=filled.later,
    )


def describe_first_token(logits: Tensor) -> list[FirstToken]:
    """Entropy and likeliest tokens of each row of logits, float32 [batch, vocabulary]."""
    logprobs = logits.log_softmax(dim=-1)
    entropies = torch.special.entr(logprobs.exp()).sum(dim=-1)
    top = logprobs.topk(min(TOP_TOKENS, logprobs.shape[-1]), dim=-1)
    rows = zip(entropies.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return [FirstToken(entropy, tuple(ids), tuple(values)) for entropy, ids, values in rows]


def decode_until(
    model: LoadedModel, answers: Sequence[Answer], start: Continuation, *, max_new_tokens: int, border: int | None
) -> None:
    """Decodes greedily until every row has stopped, or would grow past `border` tokens.

    Answers that met the border stay open (no finish reason), their last token not yet fed.
    """
    open_rows = OpenRows(list(answers), start)
    while True:
        take_tokens(open_rows, stop_ids=model.stop_ids, max_new_tokens=max_new_tokens)
        open_rows.keep([i for i, length in enumerate(open_rows.state.lengths) if length != border])
        if not open_rows.answers:
            return
        open_rows.state = feed_tokens(model, open_rows)


def take_tokens(open_rows: OpenRows, *, stop_ids: Sequence[int], max_new_tokens: int) -> None:
    """Appends each row's likeliest token to its answer; rows that end with it leave."""
    logits = open_rows.state.logits
    token_ids = logits.argmax(dim=-1, keepdim=True)
    logprobs = logits.log_softmax(dim=-1).gather(1, token_ids)
    for answer, token_id, logprob in zip(
        open_rows.answers, token_ids[:, 0].tolist(), logprobs[:, 0].tolist(), strict=True
    ):
        answer.token_ids.append(token_id)
        answer.logprobs.append(logprob)
        if token_id in stop_ids:
            answer.finish_reason = "stop"
        elif len(answer.token_ids) == max_new_tokens:
            answer.finish_reason = "length"
    open_rows.keep([i for i, answer in enumerate(open_rows.answers) if answer.finish_reason is None])


def feed_tokens(model: LoadedModel, open_rows: OpenRows) -> Continuation:
    """One decode step: each answer's last token through the decoder."""
    state = open_rows.state
    positions = [[[length + offset]] for length, offset in zip(state.lengths, state.position_offsets, strict=True)]
    tokens = pad_rows(
        [answer.token_ids[-1:] for answer in open_rows.answers],
        [TokenLayout(Span(0, 1), image=(), question=Span(0, 0))] * len(positions),
        [torch.tensor(position) for position in positions],
        pad_id=model.pad_id,
        side="right",
        device=state.owners.device,
        rows=state.rows,
        names=state.names,
    )
    output = run_on_cache(model, state.cache, state.owners, tokens, state.later)
    logits = submodule(model.hf_model, model.adapter.lm_head)(end_states(output, tokens)).float()
    lengths = [length + 1 for length in state.lengths]
    return replace(state, logits=logits, owners=torch.cat([state.owners, tokens.owners], dim=1), lengths=lengths)

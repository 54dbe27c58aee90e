"""Greedy answers, decoded from a prefill; an answer that ends leaves the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from midsight.checkpoints.generation import AnswerSettings
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.attention import PADDING
from midsight.extraction.prefill import Prefill, end_states, pad_rows, run_on_cache
from midsight.families.inputs import KVCache, keep_rows
from midsight.prompts.token_layout import Span, TokenLayout
from midsight.records import FinishReason

TOP_TOKENS = 10
SUMMED_AT_ONCE = 128


@dataclass
class Answer:
    """What one row has generated so far."""

    prompt: Sequence[int] = ()
    """Token ids of its prompt, which a model's generation config may count."""
    token_ids: list[int] = field(default_factory=list)
    """Generated tokens, the stop token included."""
    logprobs: list[float] = field(default_factory=list)
    """Log-softmax of the raw logits in float64, one per token."""
    finish_reason: FinishReason | None = None
    """None while the answer is still open."""


@dataclass(frozen=True)
class FirstToken:
    """The model's own confidence: the distribution of the first token."""

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
    """float32 [answers, vocabulary], after the last token of each answer."""
    cache: KVCache
    """Keys and values of every layer, one row per row of `prompt_ids`."""
    prompt_ids: Tensor
    """int64 [rows, tokens in the cache]: the prompt that each token belongs to."""
    ids: list[int]
    """Per answer: its id in `prompt_ids`."""
    rows: list[int]
    """Per answer: its row in the cache."""
    lengths: list[int]
    """Per answer: tokens of prompt and answer up to the last one, without padding."""
    position_offsets: list[int]
    """Per answer: next position id minus length."""
    later: Mapping[str, Tensor]
    """What the decoder takes in every step in addition to tokens; the first dimension is the row."""

    def of(self, kept: Sequence[int]) -> Continuation:
        """The answers at the indices `kept`, without the cache rows of which none is left.

        This continuation is of no use afterwards, because the cache is one.
        """
        if len(kept) == len(self.ids):
            return self
        ids = [self.ids[i] for i in kept]
        left = sorted({self.rows[i] for i in kept})
        rows = torch.tensor(left, dtype=torch.int64)  # on the CPU, because layers may be on several devices
        if kept and len(left) < len(self.prompt_ids):
            keep_rows(self.cache, rows)
        prompt_ids = self.prompt_ids[rows]
        is_open = torch.zeros(max(self.ids) + 1, dtype=torch.bool)
        is_open[torch.tensor(ids, dtype=torch.int64)] = True
        gone = (prompt_ids >= 0) & ~is_open.to(prompt_ids.device)[prompt_ids.clamp(min=0)]
        return Continuation(
            self.logits[list(kept)],
            self.cache,
            prompt_ids.masked_fill(gone, PADDING),
            ids,
            [left.index(self.rows[i]) for i in kept],
            [self.lengths[i] for i in kept],
            [self.position_offsets[i] for i in kept],
            {name: value[rows] for name, value in self.later.items()},
        )


@dataclass
class OpenRows:
    """The answers of a batch that are still open, between two steps."""

    answers: list[Answer]
    """What each has generated."""
    state: Continuation
    """What the next step is computed from."""

    def keep(self, kept: Sequence[int]) -> None:
        """Keeps the answers at the indices `kept`; drops the others, and the cache rows that become empty."""
        self.answers, self.state = [self.answers[i] for i in kept], self.state.of(kept)


def continue_from(model: LoadedModel, filled: Prefill) -> Continuation:
    """What decoding starts from after a prefill; raises ValueError if the prefill kept no cache."""
    if filled.cache is None:
        raise ValueError("This prefill kept no cache to decode from; call prefill with keep_cache.")
    return Continuation(
        logits=to_logits(model, filled.end_states),
        cache=filled.cache,
        prompt_ids=filled.prompt_ids,
        ids=list(range(len(filled.rows))),
        rows=list(filled.rows),
        lengths=list(filled.lengths),
        position_offsets=list(filled.position_offsets),
        later=filled.later,
    )


def to_logits(model: LoadedModel, states: Tensor) -> Tensor:
    """The logits after states [answers, hidden size], float32 [answers, vocabulary]."""
    logits = model.hf_model.get_submodule(model.family.modules.lm_head)(states)
    return model.family.decoder.adjust_logits(model.config, logits).float()


@dataclass(frozen=True)
class Distribution:
    """The softmax of each row of logits. Exponentials are float32, which is fast; their sums are float64."""

    logits: Tensor
    """float32 [rows, vocabulary]."""
    largest: Tensor
    """float32 [rows, 1]."""
    log_total: Tensor
    """float64 [rows, 1]: logarithm of the sum of the exponentials of `logits - largest`."""

    @classmethod
    def of(cls, logits: Tensor) -> Self:
        """The distribution of logits, on the CPU if they are on one of Apple's GPUs, which have no float64."""
        logits = logits.to("cpu" if logits.device.type == "mps" else logits.device)
        largest = logits.amax(dim=-1, keepdim=True)
        return cls(logits, largest, exact_sums((logits - largest).exp_()).log())

    def logprobs(self, chosen: Tensor) -> Tensor:
        """Log-probabilities of the tokens `chosen`, int64 [rows, k], as float64."""
        return self.logits.gather(1, chosen.to(self.logits.device)).double() - self.largest.double() - self.log_total

    def entropies(self) -> Tensor:
        """Entropy of each row in nats, float64 [rows]."""
        below = self.logits - self.largest
        weights = below.exp()
        terms = torch.where(weights > 0, weights * below, 0)  # a logit may be -inf
        return self.log_total[:, 0] - exact_sums(terms)[:, 0] / self.log_total[:, 0].exp()


def exact_sums(values: Tensor) -> Tensor:
    """The sum of each row of `values`, float32 [rows, columns], as float64 [rows, 1].

    float32's own sum over 200,000 entries is off by up to 4e-4 on a CPU, and a float64 sum of all of them takes longer
    than the exponentials. So float32 adds `SUMMED_AT_ONCE` entries, and float64 those sums.
    """
    whole = values.shape[-1] - values.shape[-1] % SUMMED_AT_ONCE
    sums = values[:, :whole].unflatten(-1, (-1, SUMMED_AT_ONCE)).sum(dim=-1)
    rest = values[:, whole:].sum(dim=-1, keepdim=True)
    return torch.cat([sums, rest], dim=-1).sum(dim=-1, keepdim=True, dtype=torch.float64)


def describe_first_token(logits: Tensor) -> list[FirstToken]:
    """Entropy and likeliest tokens of each row of logits, float32 [batch, vocabulary]."""
    distribution = Distribution.of(logits)
    top = distribution.logits.topk(min(TOP_TOKENS, logits.shape[-1]), dim=-1).indices
    described = (distribution.entropies(), top, distribution.logprobs(top))
    rows = zip(*(tensor.tolist() for tensor in described), strict=True)
    return [FirstToken(entropy, tuple(ids), tuple(values)) for entropy, ids, values in rows]


def decode_until(
    model: LoadedModel,
    answers: Sequence[Answer],
    start: Continuation,
    *,
    settings: AnswerSettings,
    max_new_tokens: int,
    threshold: int | None,
) -> None:
    """Decodes greedily until every answer has ended, or prompt and answer have `threshold` tokens.

    Answers that reach the threshold stay open (no finish reason), and their last token is not fed to the decoder.
    """
    open_rows = OpenRows(list(answers), start)
    while True:
        take_tokens(open_rows, settings, max_new_tokens=max_new_tokens)
        open_rows.keep([i for i, length in enumerate(open_rows.state.lengths) if length != threshold])
        if not open_rows.answers:
            return
        open_rows.state = feed_tokens(model, open_rows)


def take_tokens(open_rows: OpenRows, settings: AnswerSettings, *, max_new_tokens: int) -> None:
    """Appends the token with the best score to each answer, and drops the answers that end with it.

    Tokens and log-probabilities come from the device together, because each copy waits for it.
    """
    chosen = choose_tokens(open_rows, settings, max_new_tokens=max_new_tokens)
    logprobs = Distribution.of(open_rows.state.logits).logprobs(chosen)
    chosen_with_logprobs = torch.cat([chosen.to(logprobs.device).double(), logprobs], dim=1)
    for answer, (token_id, logprob) in zip(open_rows.answers, chosen_with_logprobs.tolist(), strict=True):
        token_id = int(token_id)
        answer.token_ids.append(token_id)
        answer.logprobs.append(logprob)
        if token_id in settings.stop_ids:
            answer.finish_reason = "stop"
        elif len(answer.token_ids) == max_new_tokens:
            answer.finish_reason = "length"
    open_rows.keep([i for i, answer in enumerate(open_rows.answers) if answer.finish_reason is None])


def choose_tokens(open_rows: OpenRows, settings: AnswerSettings, *, max_new_tokens: int) -> Tensor:
    """The next token of each answer, int64 [answers, 1]."""
    logits = open_rows.state.logits
    if settings.values:
        rows = zip(logits, open_rows.answers, strict=True)
        logits = torch.stack(
            [settings.score(row, a.prompt, a.token_ids, max_new_tokens=max_new_tokens) for row, a in rows]
        )
    return logits.argmax(dim=-1, keepdim=True)


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
        device=state.prompt_ids.device,
        rows=state.rows,
        ids=state.ids,
    )
    is_padded = any(length != state.prompt_ids.shape[1] for length in state.lengths)
    output = run_on_cache(model, state.cache, state.prompt_ids, tokens, state.later, is_padded=is_padded)
    logits = to_logits(model, end_states(output, tokens))
    lengths = [length + 1 for length in state.lengths]
    return replace(
        state, logits=logits, prompt_ids=torch.cat([state.prompt_ids, tokens.prompt_ids], dim=1), lengths=lengths
    )

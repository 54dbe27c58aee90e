"""How a model answers: the folder's generation config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig

from midsight.checkpoints.headers import read_json
from midsight.errors import MidsightError, ModelFileError, first_line, quoted

FILE = "generation_config.json"
LARGEST_VOCABULARY = 2**22
"""More tokens than any model has, so that a wrong number in config.json takes no memory."""
NEUTRAL: Mapping[str, Any] = {
    "sequence_bias": None,
    "encoder_repetition_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
"""Settings that change greedy answers and that midsight applies, with the value that changes nothing, in the order
in which transformers applies them."""
NOT_APPLIED: Mapping[str, Any] = {
    "num_beams": 1,
    "guidance_scale": 1.0,
    "stop_strings": None,
    "watermarking_config": None,
    "dola_layers": None,
    "penalty_alpha": 0.0,
    "token_healing": False,
}
"""Settings that change what `generate` answers and are not applied, with the value that changes nothing."""


@dataclass(frozen=True)
class AnswerSettings:
    """What the generation config changes about greedy answers."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """The settings that are applied, by transformers' names; empty for the likeliest token at every step."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end an answer."""

    def score(self, logits: Tensor, prompt: Sequence[int], answer: Sequence[int], *, max_new_tokens: int) -> Tensor:
        """The scores whose largest is the next token.

        Args:
            logits: float32 [vocabulary].
            prompt: Token ids of the prompt, image tokens repeated.
            answer: Token ids generated so far.
            max_new_tokens: Maximum number of new tokens of the answer.

        Returns:
            float32 [vocabulary].
        """
        token_ids = torch.tensor([[*prompt, *answer]], device=logits.device)
        scores = logits[None].clone()
        for name, value in self.values.items():
            processor = self.make_processor(name, value, token_ids[:, : len(prompt)], max_new_tokens)
            scores = processor(token_ids, scores)
        return scores[0]

    def make_processor(self, name: str, value: Any, prompt: Tensor, max_new_tokens: int) -> Any:
        """Transformers' processor of one setting for a prompt, int64 [1, tokens]."""
        t, device = transformers, str(prompt.device)
        length, stop = prompt.shape[1], torch.tensor(self.stop_ids, device=prompt.device)
        make = {
            "sequence_bias": lambda: t.SequenceBiasLogitsProcessor(value),
            "encoder_repetition_penalty": lambda: t.EncoderRepetitionPenaltyLogitsProcessor(value, prompt),
            "repetition_penalty": lambda: t.RepetitionPenaltyLogitsProcessor(value),
            "no_repeat_ngram_size": lambda: t.NoRepeatNGramLogitsProcessor(value),
            "encoder_no_repeat_ngram_size": lambda: t.EncoderNoRepeatNGramLogitsProcessor(value, prompt),
            "bad_words_ids": lambda: t.NoBadWordsLogitsProcessor(value, stop),
            "min_length": lambda: t.MinLengthLogitsProcessor(value, stop, device=device),
            "min_new_tokens": lambda: t.MinNewTokensLengthLogitsProcessor(length, value, stop, device=device),
            "forced_eos_token_id": lambda: t.ForcedEOSTokenLogitsProcessor(
                length + max_new_tokens, value, device=device
            ),
            "exponential_decay_length_penalty": lambda: t.ExponentialDecayLengthPenalty(value, stop, length),
            "suppress_tokens": lambda: t.SuppressTokensLogitsProcessor(value, device=device),
            "begin_suppress_tokens": lambda: t.SuppressTokensAtBeginLogitsProcessor(value, length, device=device),
        }
        return make[name]()


def read_answer_settings(
    config: GenerationConfig, stop_ids: tuple[int, ...], vocab_size: int, source: str
) -> tuple[AnswerSettings, tuple[str, ...]]:
    """What a generation config changes about greedy answers, and notes about it.

    Raises ModelFileError if transformers does not take a value. `source` names the config in notes and errors.
    """
    values = {name: getattr(config, name, None) for name in NEUTRAL}
    settings = AnswerSettings(
        {name: value for name, value in values.items() if value not in (None, [], {}, NEUTRAL[name])}, stop_ids
    )
    try:
        if settings.values:  # some processors look at their settings only when they are used
            settings.score(torch.zeros(min(vocab_size, LARGEST_VOCABULARY)), [0], [0], max_new_tokens=2)
    except Exception as error:  # each processor validates its values in its own way
        raise ModelFileError(f"{source} has settings that are not usable ({first_line(error)})") from error
    ignored = {name: getattr(config, name, None) for name, neutral in NOT_APPLIED.items()}
    ignored = {name: value for name, value in ignored.items() if value not in (None, [], {}, NOT_APPLIED[name])}
    notes = []
    if settings.values:
        named = ", ".join(f"{name}={value!r}"[:80] for name, value in settings.values.items())
        notes.append(f"Answers follow the model's own generation config ({named}); plain_greedy leaves it out.")
    if ignored:
        named = ", ".join(f"{name}={value!r}"[:80] for name, value in ignored.items())
        notes.append(f"{source} asks for {named}, which midsight does not apply: it decodes greedily.")
    return settings, tuple(notes)


@dataclass(frozen=True)
class Generation:
    """How a model answers."""

    config: GenerationConfig
    """transformers' object."""
    settings: AnswerSettings
    """What it changes about greedy answers, and the stop ids."""
    notes: tuple[str, ...]
    """What a user should know about it, one sentence each."""


def read_generation(folder: Path, tokenizer: Any, config: Any) -> Generation:
    """The folder's generation config; without one, what transformers makes of the model's config.

    Raises MidsightError if transformers does not take the file, or if a stop id is not a token.
    """
    path, notes = folder / FILE, []
    if path.exists():
        ids = as_ids(read_json(path).get("eos_token_id"), str(path))
    else:
        path = folder / "config.json"
        text = config.get_text_config()
        ids = as_ids(getattr(text, "eos_token_id", None) or getattr(config, "eos_token_id", None), str(path))
        notes.append(
            f"{folder} has no {FILE}, so answers end at {', '.join(map(str, ids))}, the eos_token_id of config.json; "
            "they may run on if a turn ends otherwise."
        )
    vocab_size = config.get_text_config().vocab_size
    validate_stop_ids(ids, tokenizer, vocab_size, str(path))
    try:
        if path.name == FILE:
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        else:
            generation = GenerationConfig(eos_token_id=list(ids))
    except Exception as error:  # transformers validates values, each with its own type of error
        raise ModelFileError(f"{path} is not usable ({first_line(error)})", path) from error
    settings, more = read_answer_settings(generation, ids, vocab_size, str(path))
    return Generation(generation, settings, (*notes, *more))


def as_ids(eos: Any, source: str) -> tuple[int, ...]:
    """`eos_token_id` as a tuple, ascending; raises MidsightError unless it is a token id or a list of them."""
    ids = eos if isinstance(eos, list) else [eos]
    if not ids or not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise MidsightError(
            f"{source} says {quoted(repr(eos))} for eos_token_id; give the ids of the tokens that end an answer."
        )
    return tuple(sorted(ids))


def validate_stop_ids(ids: tuple[int, ...], tokenizer: Any, vocab_size: int, source: str) -> None:
    """Raises MidsightError for an id that no answer can contain."""
    tokens = set(tokenizer.get_vocab().values())
    for token_id in ids:
        if token_id not in tokens or token_id >= vocab_size:
            raise MidsightError(
                f"{source} says {quoted(str(token_id))} for eos_token_id, which is not a token of this tokenizer and "
                "model; give the ids of the tokens that end an answer."
            )

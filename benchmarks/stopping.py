"""Answers of a given length from a model with random weights, which never stops by itself.

Hooks read the input of the token embedding and change the output of the language-model head, so every procedure runs
its normal code. The first token of an answer encodes the number of tokens that are left, each following token encodes
one less, and the last is the stop token. The count is in the tokens themselves, so rows may be padded, reordered or
removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IMAGE_ID, ASSISTANT_ID, END_ID, PAD_ID = 200010, 200019, 200020, 199999
FORCED_LOGIT = 1e4
"""Logit of the forced token."""


class StopAfter:
    """Makes `model` answer each question with a given number of tokens; raises KeyError for other questions."""

    def __init__(self, model: Any, tokenizer: Any, lengths: Mapping[str, int]) -> None:
        """`lengths` maps a question to the number of tokens in its answer, including the stop token."""
        longest = max(lengths.values())
        ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        self._countdown = [END_ID, *ordinary[1 : longest + 1]]
        self._lengths = {tuple(tokenizer(question)["input_ids"]): length for question, length in lengths.items()}
        self._following = torch.full((model.config.vocab_size,), END_ID, device=model.device)
        for token_id, next_id in zip(self._countdown[1:], self._countdown, strict=False):
            self._following[token_id] = next_id
        self._next: list[Tensor] = []  # of each call of the decoder since the head ran: prompts may come in slices
        self._hooks = [
            model.get_input_embeddings().register_forward_hook(self._read_tokens),
            model.get_output_embeddings().register_forward_hook(self._force_next),
        ]

    def remove(self) -> None:
        """Lets the model answer as it does without this object."""
        for hook in self._hooks:
            hook.remove()

    def _read_tokens(self, _module: object, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        token_ids = inputs[0]
        if token_ids.shape[1] == 1:
            self._next.append(self._following[token_ids[:, 0]])
        else:
            following = [token_id for row in token_ids.tolist() for token_id in self._follow(row)]
            self._next.append(torch.tensor(following, dtype=torch.int64, device=token_ids.device))

    def _follow(self, row: Sequence[int]) -> list[int]:
        """The next token of each prompt in a row.

        A prompt may be whole, without its prefix, followed by part of its answer, or a single answer token.
        """
        row = [token_id for token_id in row if token_id != PAD_ID]
        if ASSISTANT_ID not in row:
            return [] if IMAGE_ID in row else self._following[row].tolist()  # the head does not run on a shared prefix
        if row[-1] != ASSISTANT_ID:
            return [int(self._following[row[-1]])]
        begin = len(row) - row[::-1].index(IMAGE_ID) if IMAGE_ID in row else 0
        first_tokens = []
        while begin < len(row):
            end = row.index(END_ID, begin)
            first_tokens.append(self._countdown[self._lengths[tuple(row[begin:end])] - 1])
            begin = row.index(ASSISTANT_ID, end) + 1
        return first_tokens

    def _force_next(self, _module: object, _inputs: object, logits: Tensor) -> None:
        last = logits if logits.dim() == 2 else logits[:, -1]
        coming, self._next = torch.cat(self._next) if self._next else self._following[:0], []
        if len(coming) != len(last):
            raise RuntimeError(f"The head has {len(last)} rows, but the embedding had {len(coming)} prompts.")
        last[torch.arange(len(last), device=last.device), coming] = FORCED_LOGIT

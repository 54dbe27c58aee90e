"""Answers of a given length from a model with random weights, which would never stop by itself.

The model's token embedding is watched and the output of its head changed, so that every procedure runs the
code that it always runs: the first token of an answer is one that means "so many are left", each next one
means one less, and the last is the stop token. The tokens themselves carry the count, so rows may be
padded, reordered or leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IMAGE_ID, ASSISTANT_ID, END_ID, PAD_ID = 200010, 200019, 200020, 199999
SURE = 1e4
"""The logit of the token that is to come."""


class StopAfter:
    """Makes `model` answer each question with its number of tokens, from now on; raises KeyError for other questions.

    seen: questions -> tokens of their answers, the stop token among them.
    """

    def __init__(self, model: Any, tokenizer: Any, lengths: Mapping[str, int]) -> None:
        longest = max(lengths.values())
        ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        self._left = [END_ID, *ordinary[1 : longest + 1]]
        self._lengths = {tuple(tokenizer(question)["input_ids"]): length for question, length in lengths.items()}
        self._following = torch.full((model.config.vocab_size,), END_ID, device=model.device)
        for token_id, next_id in zip(self._left[1:], self._left, strict=False):
            self._following[token_id] = next_id
        self._next: Tensor | None = None
        model.get_input_embeddings().register_forward_hook(self._see)
        model.get_output_embeddings().register_forward_hook(self._force)

    def _see(self, _module: object, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        token_ids = inputs[0]
        if token_ids.shape[1] == 1:
            self._next = self._following[token_ids[:, 0]]
        else:
            following = [token_id for row in token_ids.tolist() for token_id in self._follow(row)]
            self._next = torch.tensor(following, device=token_ids.device)

    def _follow(self, row: Sequence[int]) -> list[int]:
        """What comes after each prompt of a row: whole, the rest of one, one with a part of its answer, or a token."""
        row = [token_id for token_id in row if token_id != PAD_ID]
        if ASSISTANT_ID not in row:
            return [] if IMAGE_ID in row else self._following[row].tolist()  # no head follows what prompts share
        if row[-1] != ASSISTANT_ID:
            return [int(self._following[row[-1]])]
        begin = len(row) - row[::-1].index(IMAGE_ID) if IMAGE_ID in row else 0
        firsts = []
        while begin < len(row):
            end = row.index(END_ID, begin)
            firsts.append(self._left[self._lengths[tuple(row[begin:end])] - 1])
            begin = row.index(ASSISTANT_ID, end) + 1
        return firsts

    def _force(self, _module: object, _inputs: object, logits: Tensor) -> None:
        last = logits if logits.dim() == 2 else logits[:, -1]
        if self._next is None or len(self._next) != len(last):
            raise RuntimeError(f"The head has {len(last)} rows, other than the prompts before it.")
        last[torch.arange(len(last), device=last.device), self._next] = SURE

"""A KV cache with room for the next tokens, so that a decode step copies its own tokens only."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from midsight.families.inputs import KVCache

ROOM = 64
"""Tokens of room that a layer has at least when it makes some."""
SHARE_OF_ROOM = 8
"""A layer of this many tokens makes room for one more, so that its copies stay few when answers are long."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer: the front of two larger tensors, into whose rest the next tokens are written.

    transformers' own layer copies the whole cache in every step to append one token.
    """

    whole: tuple[Tensor, Tensor]
    """The tensors that `keys` and `values` are the front of, [rows, heads, tokens with room, width] each."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begins without tokens and without room."""
        super().lazy_initialization(key_states, value_states)
        self.whole = key_states[..., :0, :], value_states[..., :0, :]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **_options: Any) -> tuple[Tensor, Tensor]:
        """Appends the states of new tokens, [rows, heads, new tokens, width]; returns those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        keys, values = self.whole
        self.whole = append(keys, before, key_states), append(values, before, value_states)
        return self.show(before + key_states.shape[-2])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices` only."""
        length = self.get_seq_length()
        if length:
            keys, values = self.whole
            self.whole = keys[indices], values[indices]
            self.show(length)

    def put(self, key_states: Tensor, value_states: Tensor, start: int, rows: int) -> None:
        """Takes the states of all tokens of some of the `rows`, those from `start` on.

        Raises ValueError if rows that came before have another number of tokens.
        """
        length = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.whole = with_room(key_states, rows, length), with_room(value_states, rows, length)
        elif length != self.get_seq_length():
            raise ValueError(f"These rows have {length} tokens, and others {self.get_seq_length()}; run them together.")
        for whole, states in zip(self.whole, (key_states, value_states), strict=True):
            whole[start : start + len(states), :, :length] = states
        self.show(length)

    def show(self, length: int) -> tuple[Tensor, Tensor]:
        """Makes the first `length` tokens the keys and values, and returns these."""
        keys, values = self.whole
        self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        return self.keys, self.values


def append(whole: Tensor, length: int, states: Tensor) -> Tensor:
    """`whole`, of which `length` tokens are taken, with the states of new tokens after them; larger if it must be."""
    after = length + states.shape[-2]
    if after > whole.shape[-2]:
        larger = with_room(states, len(states), after)
        larger[..., :length, :] = whole[..., :length, :]
        whole = larger
    whole[..., length:after, :] = states
    return whole


def with_room(states: Tensor, rows: int, tokens: int) -> Tensor:
    """An empty tensor like `states` for so many rows and tokens, and for some tokens more."""
    return states.new_empty(rows, states.shape[1], tokens + max(ROOM, tokens // SHARE_OF_ROOM), states.shape[-1])


def growing_cache(config: Any) -> KVCache:
    """An empty cache for the decoder of a model with the transformers config `config`.

    It keeps every token in every layer of attention, those that slide too: transformers' own drops the oldest tokens
    of a padded row by their index in it, real ones before padding.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer for layer in cache.layers
    ]
    return cache


def put_rows(cache: KVCache, part: KVCache, start: int, rows: int) -> None:
    """Copies the cache of some of the `rows`, those from `start` on, into the growing cache of all of them.

    Raises ValueError for layers that do not keep keys and values of every token.
    """
    for layer, layer_of_part in zip(cache.layers, part.layers, strict=True):
        if isinstance(layer, GrowingLayer) and isinstance(layer_of_part, GrowingLayer):
            if layer_of_part.keys is not None and layer_of_part.values is not None:
                layer.put(layer_of_part.keys, layer_of_part.values, start, rows)
        elif getattr(layer_of_part, "keys", part) is not None:  # else it reads the keys of an earlier layer, or none
            raise ValueError(f"Rows cannot be put into a layer of type {type(layer).__name__}; run them together.")

"""Reading the hidden states at a position of each prompt from those of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from midsight.prompts.token_layout import TokenLayout
from midsight.taps.tap import Position


def _at(hidden_states: Tensor, rows: Sequence[int], indices: Sequence[int]) -> Tensor:
    where = torch.tensor([list(rows), list(indices)], device=hidden_states.device)
    return hidden_states[where[0], where[1]].float()


def _vision_token(hidden_states: Tensor, layouts: Sequence[TokenLayout], rows: Sequence[int]) -> Tensor:
    return _at(hidden_states, rows, [layout.vision_token for layout in layouts])


def _query_token(hidden_states: Tensor, layouts: Sequence[TokenLayout], rows: Sequence[int]) -> Tensor:
    return _at(hidden_states, rows, [layout.query_token for layout in layouts])


def _image_mean(hidden_states: Tensor, layouts: Sequence[TokenLayout], rows: Sequence[int]) -> Tensor:
    def mean(row: Tensor, layout: TokenLayout) -> Tensor:
        return row[torch.from_numpy(layout.image_indices()).to(row.device)].float().mean(dim=0)

    return torch.stack([mean(hidden_states[row], layout) for row, layout in zip(rows, layouts, strict=True)])


_READERS: dict[Position, Callable[[Tensor, Sequence[TokenLayout], Sequence[int]], Tensor]] = {
    "vision_token": _vision_token,
    "query_token": _query_token,
    "image_mean": _image_mean,
}


def read_position(
    hidden_states: Tensor, layouts: Sequence[TokenLayout], position: Position, rows: Sequence[int]
) -> Tensor:
    """The states at one position of every prompt, float32 [prompts, width].

    `hidden_states` is [rows, tokens, width]. `layouts` are those of the prompts in their padded rows, and `rows` says
    in which row each prompt is.
    """
    return _READERS[position](hidden_states, layouts, rows)

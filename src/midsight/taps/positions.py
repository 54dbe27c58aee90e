"""Reading positions of a prompt out of a batch's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from midsight.models.layout import TokenLayout
from midsight.taps.tap import Position


def _at(hidden_states: Tensor, indices: Sequence[int]) -> Tensor:
    rows = torch.arange(len(indices), device=hidden_states.device)
    return hidden_states[rows, torch.tensor(indices, device=hidden_states.device)].float()


def _vision_token(hidden_states: Tensor, layouts: Sequence[TokenLayout]) -> Tensor:
    return _at(hidden_states, [layout.vision_token for layout in layouts])


def _query_token(hidden_states: Tensor, layouts: Sequence[TokenLayout]) -> Tensor:
    return _at(hidden_states, [layout.query_token for layout in layouts])


def _image_mean(hidden_states: Tensor, layouts: Sequence[TokenLayout]) -> Tensor:
    def mean(row: Tensor, layout: TokenLayout) -> Tensor:
        return row[torch.from_numpy(layout.image_indices()).to(row.device)].float().mean(dim=0)

    return torch.stack([mean(row, layout) for row, layout in zip(hidden_states, layouts, strict=True)])


_READERS: dict[Position, Callable[[Tensor, Sequence[TokenLayout]], Tensor]] = {
    "vision_token": _vision_token,
    "query_token": _query_token,
    "image_mean": _image_mean,
}


def read_position(hidden_states: Tensor, layouts: Sequence[TokenLayout], position: Position) -> Tensor:
    """Hidden states [batch, tokens, width] at one position of every row, float32 [batch, width].

    `layouts` are those of the padded rows.
    """
    return _READERS[position](hidden_states, layouts)

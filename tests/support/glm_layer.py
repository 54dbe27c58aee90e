"""A decoder layer of GLM-4.5V as published, in float64; it shares no code with transformers or midsight.

As vLLM and SGLang compute it (glm4_moe.py), from tensors by their published names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

HEAD_SIZE, THETA, EPS = 32, 1e4, 1e-5
"""The small checkpoint's head size, base of the rotary frequencies, and epsilon of the norms."""
AXES = (0, 0, 1, 1, 1, 2, 2, 2)
"""For each pair of values that is rotated: time, row or column, whose position gives the angle."""
CHOSEN = 2
"""Experts that compute a token."""


def layer_as_published(weights: Mapping[str, Tensor], layer: int, states: Tensor, positions: Tensor) -> Tensor:
    """What a layer makes of states [tokens, width] at positions [3 axes, tokens]."""
    own = f"model.language_model.layers.{layer}."
    part = {name.removeprefix(own): one.double() for name, one in weights.items() if name.startswith(own)}
    states = states + attention(part, normed(states, part["input_layernorm.weight"]), positions)
    read = normed(states, part["post_attention_layernorm.weight"])
    if "mlp.gate.weight" not in part:
        return states + swiglu(part, "mlp", read)
    return states + torch.stack([mixture(part, token) for token in read]) + swiglu(part, "mlp.shared_experts", read)


def normed(states: Tensor, weight: Tensor) -> Tensor:
    return states / (states.square().mean(dim=-1, keepdim=True) + EPS).sqrt() * weight


def swiglu(part: Mapping[str, Tensor], name: str, read: Tensor) -> Tensor:
    gate, up, down = (part[f"{name}.{kind}_proj.weight"] for kind in ("gate", "up", "down"))
    opened = read @ gate.T
    return (opened * opened.sigmoid() * (read @ up.T)) @ down.T


def mixture(part: Mapping[str, Tensor], token: Tensor) -> Tensor:
    """The bias takes part in the choice of experts only, not in their weights, which sum to 1."""
    scores = (part["mlp.gate.weight"] @ token).sigmoid()
    chosen = (scores + part["mlp.gate.e_score_correction_bias"]).sort(descending=True).indices[:CHOSEN].tolist()
    total = sum(scores[number] for number in chosen)
    return sum(
        (swiglu(part, f"mlp.experts.{number}", token) * (scores[number] / total) for number in chosen),
        start=torch.zeros_like(token),
    )


def attention(part: Mapping[str, Tensor], read: Tensor, positions: Tensor) -> Tensor:
    """Queries of all heads read one head of keys; half of a head is turned."""
    query, key, value = (
        (read @ part[f"self_attn.{kind}_proj.weight"].T + part[f"self_attn.{kind}_proj.bias"]).view(
            len(read), -1, HEAD_SIZE
        )
        for kind in "qkv"
    )
    query, key = turned(query, positions), turned(key, positions)
    scores = torch.einsum("qhd,kd->hqk", query, key[:, 0]) / HEAD_SIZE**0.5
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(later, float("-inf")).softmax(dim=-1) @ value[:, 0]
    return mixed.transpose(0, 1).flatten(1) @ part["self_attn.o_proj.weight"].T


def turned(heads: Tensor, positions: Tensor) -> Tensor:
    """Values 0 to 7 are paired with 8 to 15; the second half of a head stays."""
    pairs = len(AXES)
    angles = positions[list(AXES)].T.double() * THETA ** (-torch.arange(pairs) / pairs)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second, rest = heads.split([pairs, pairs, HEAD_SIZE - 2 * pairs], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def positions_as_published(token_ids: Tensor, image_token_id: int, grid: tuple[int, int]) -> Tensor:
    """[3 axes, tokens] of a prompt with one image of rows x columns tokens: text goes on past its longer side."""
    first = token_ids.tolist().index(image_token_id)
    rows, columns = grid
    image = [(first, first + row, first + column) for row in range(rows) for column in range(columns)]
    after = len(token_ids) - first - len(image)
    behind = first + max(rows, columns)
    text = [(place,) * 3 for place in (*range(first), *range(behind, behind + after))]
    return torch.tensor([*text[:first], *image, *text[first:]]).T

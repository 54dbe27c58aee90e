"""What tokens and samples need of a machine, estimated from the model's config before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

WIDE_TENSORS, INNER_TENSORS = 8, 4
"""Tensors of a token that exist at once in a decoder layer: of the hidden size, and of the MLP's inner size."""
BYTES_PER_LOGIT = 4 + 5 * 8
"""Logits in float32, and what log-probabilities and entropy take in float64."""


@dataclass(frozen=True)
class Needs:
    """What a call of the model takes, for each of its tokens and samples."""

    token_bytes: float
    """KV cache and activations of a token."""
    sample_bytes: float
    """What a sample takes beyond its tokens: its logits."""
    token_flops: float
    """Floating-point operations of a token in the decoder layers."""


SMALL = Needs(token_bytes=1e5, sample_bytes=1e7, token_flops=1e8)
"""For a model of which nothing is known."""


def estimate_needs(config: Any, dtype: torch.dtype, *, logits: bool) -> Needs:
    """What the decoder of a config needs in a dtype; `logits` if any are computed.

    `config` is transformers' config of the whole model. What it leaves out counts as in a usual decoder.
    """
    text = config.get_text_config()
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text] * text.num_hidden_layers
    hidden = text.hidden_size
    inner = [getattr(layer, "intermediate_size", 4 * hidden) for layer in layers]
    inner = inner[0] if isinstance(inner[0], list) else inner
    queries, keys = zip(*(widths(layer) for layer in layers), strict=True)
    activations = WIDE_TENSORS * hidden + INNER_TENSORS * max(inner)
    weights = 2 * hidden * (sum(queries) + sum(keys)) + 3 * hidden * sum(inner)
    return Needs(
        token_bytes=dtype.itemsize * (2 * sum(keys) + activations),
        sample_bytes=getattr(text, "vocab_size", 0) * (dtype.itemsize + BYTES_PER_LOGIT) if logits else 0,
        token_flops=2 * weights,
    )


def widths(layer: Any) -> tuple[int, int]:
    """Numbers in a token's queries, and in its keys; `layer` is a layer's config."""
    heads = getattr(layer, "num_attention_heads", 1)
    head = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return heads * head, (getattr(layer, "num_key_value_heads", None) or heads) * head

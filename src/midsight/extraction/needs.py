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
    layers, hidden = text.num_hidden_layers, text.hidden_size
    inner = getattr(text, "intermediate_size", 4 * hidden)
    heads = getattr(text, "num_attention_heads", 1)
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head = getattr(text, "head_dim", None) or hidden // heads
    cache = 2 * layers * key_heads * head
    activations = WIDE_TENSORS * hidden + INNER_TENSORS * inner
    weights = layers * (2 * hidden * head * (heads + key_heads) + 3 * hidden * inner)
    return Needs(
        token_bytes=dtype.itemsize * (cache + activations),
        sample_bytes=getattr(text, "vocab_size", 0) * (dtype.itemsize + BYTES_PER_LOGIT) if logits else 0,
        token_flops=2 * weights,
    )

"""SDPA over shared keys and values with a mask, without copying them for each head that shares them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

GROUPED = "midsight_grouped_sdpa"
"""The name of `attend_in_groups` in transformers' register of attention kernels."""


def attend_in_groups(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA of queries [rows, heads, tokens, width] on keys and values of fewer heads, [rows, tokens, heads, width].

    The queries of all heads that share keys lie in one sequence. transformers does the same for a single token; for
    more it copies keys and values for every head, which takes longer than attention itself if tokens are few. If they
    are many, that is done here too, because the mask, which is copied in its place, would take more memory.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    changes_scores = any(kwargs.get(name) is not None for name in ("position_bias", "softcap"))
    rows, heads, tokens, width = query.shape
    mask_is_larger = groups * tokens > heads * (width + value.shape[-1])
    if groups == 1 or attention_mask is None or attention_mask.shape[1] > 1 or changes_scores or mask_is_larger:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    attended = scaled_dot_product_attention(
        query.reshape(rows, heads // groups, groups * tokens, width),
        key,
        value,
        attn_mask=attention_mask.expand(-1, -1, tokens, -1).repeat(1, 1, groups, 1),
        scale=scaling,
    )
    return attended.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, attend_in_groups)


@contextmanager
def grouped_attention(decoder: Any, attention_mask: Tensor | dict[str, Tensor] | None) -> Iterator[None]:
    """Lets a decoder that uses SDPA attend in groups, if it gets a mask of queries and keys."""
    masks = attention_mask.values() if isinstance(attention_mask, dict) else (attention_mask,)
    config = decoder.config
    if config._attn_implementation != "sdpa" or not all(is_full(mask) for mask in masks):
        yield
        return
    config._attn_implementation_internal = GROUPED  # the setter changes the configs inside as well
    try:
        yield
    finally:
        config._attn_implementation_internal = "sdpa"


def is_full(mask: Tensor | None) -> bool:
    """Whether a mask has an entry for each pair of tokens."""
    return isinstance(mask, Tensor) and mask.ndim == 4

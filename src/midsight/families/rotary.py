"""Rotary embeddings whose factors change with the length of a sequence (`dynamic`), as in InternVL 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

KIND = "dynamic"


def rotary_limit(config: Any) -> int | None:
    """Number of tokens, prompt and answer together, up to which dynamic rotary factors stay the same.

    None for other rotary embeddings. `config` is transformers' config of the whole model.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, Mapping)}
    return text.max_position_embeddings if KIND in kinds else None


def fix_rotary(model: nn.Module) -> tuple[str, ...]:
    """Keeps dynamic factors as they are up to `rotary_limit`; says so in a sentence, if there was anything to fix.

    transformers asks the device twice at every step whether to change them. If it does, the keys in the cache have been
    made with others.
    """
    hf_model: Any = model
    found: dict[str, Any] = {
        path: module for path, module in model.named_modules() if getattr(module, "rope_type", None) == KIND
    }
    for rotary in found.values():
        if rotary.max_seq_len_cached > rotary.original_max_seq_len:
            rotary.inv_freq = rotary.original_inv_freq.to(rotary.inv_freq.device)
        rotary.rope_type = "default"
    if not found:
        return ()
    limit = rotary_limit(hf_model.config)
    return (
        f"{next(iter(found))}: the factors stay those of the first {limit:,} tokens; transformers changes them for "
        "longer prompts and answers, under a cache that was made with others",
    )

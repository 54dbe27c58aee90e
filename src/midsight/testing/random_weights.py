"""Random weights, scaled by the tensor's name, and a small tokenizer with any special tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Generator, Tensor, nn
from transformers import PreTrainedTokenizerFast

from midsight.checkpoints.quiet import quiet_transformers
from midsight.families.family import Modules

TOKENIZER = Path(__file__).with_name("assets") / "tokenizer.json"
"""Written by scripts/train_tokenizer.py."""

USUAL = Modules()
"""Where most families have their parts."""
NORM_SPREAD = 0.2
BIAS_STD = 0.1
GATES = (0.4, 1.2)
"""Range of a gate's absolute value before its tanh; its sign is random."""
VARIANCES = (0.5, 1.5)
"""Range of the variances that a batch norm has seen."""
SMALLEST_BOUND = 1.5
"""Smallest value at which activations are cut off, to both sides of 0."""

Gains = Sequence[tuple[str, float]]
"""Numbers by the end of a weight's name: its standard deviation times the square root of its fan-in, 1 for other names.
"""


@quiet_transformers()
def write_checkpoint(
    folder: str | Path,
    model: type[nn.Module],
    config: Any,
    processor: Any,
    generation_config: Any,
    *,
    head_scales: Mapping[int, float],
    gains: Gains,
    seed: int,
    word_scale: float = 1.0,
    norms_add_one: bool = False,
    modules: Modules = USUAL,
    offsets: Gains = (),
) -> Path:
    """Writes a model folder with random weights; embedding rows without a token are zero.

    A head that is the token embedding is not stored.

    Args:
        folder: Where the files go; made if it does not exist.
        model: transformers' class.
        config: Its config.
        processor: Its processor.
        generation_config: How it answers.
        head_scales: Scales of the head's rows of control tokens, by id; 1 for every other token.
        gains: Scales of the other weights.
        seed: Decides the weights.
        word_scale: Scale of the rows of other tokens. Below 1, a token does not follow itself though the head is the
            token embedding.
        norms_add_one: Whether the decoder's norms multiply by one plus their weight.
        modules: Where embedding and head are.
        offsets: What is added to weights, by the end of their name.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = dict.fromkeys(processor.tokenizer.get_vocab().values(), word_scale)
    head, embedding = f"{modules.lm_head}.weight", f"{modules.token_embedding}.weight"
    scaled = {**words, **head_scales}
    tied = config.tie_word_embeddings
    rows = {embedding: scaled, head: {}} if tied else {embedding: words, head: scaled}
    weights = draw_weights(model, config, rows, Generator().manual_seed(seed), gains)
    if tied:
        weights.pop(head, None)
    if norms_add_one:
        for name in weights:
            if name.endswith("norm.weight") and not name.startswith("model.vision_tower."):
                weights[name] -= 1
    for end, offset in offsets:
        for name in weights:
            if name.endswith(end):
                weights[name] += offset
    save_weights(weights, folder / "model.safetensors")
    config.save_pretrained(folder)
    generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def draw_weights(
    model: type[nn.Module],
    config: Any,
    rows: Mapping[str, Mapping[int, float]],
    generator: Generator,
    gains: Gains,
) -> dict[str, Tensor]:
    """A random tensor for each one that a class stores, by sorted name; those in `rows` are drawn by draw_rows.

    Counters, which are integers, are zero.
    """
    with torch.device("meta"):
        state = model(config).state_dict()

    def draw_one(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        if name in rows:
            return draw_rows(shape[0], shape[1], rows[name], generator)
        return draw(name, shape, generator, gains)

    return {name: draw_one(name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(state.items())}


def draw(name: str, shape: tuple[int, ...], generator: Generator, gains: Gains) -> Tensor:
    """One random tensor; no value is neutral, and gates are open."""
    noise = torch.randn(shape, generator=generator)
    *_, module, parameter = name.split(".")
    if parameter.endswith("gate") or (parameter.startswith("gate_") and module != "experts"):
        smallest, largest = GATES
        return noise.sign() * (smallest + (largest - smallest) * torch.rand(shape, generator=generator))
    if parameter == "running_var":
        return VARIANCES[0] + (VARIANCES[1] - VARIANCES[0]) * torch.rand(shape, generator=generator)
    if noise.dim() <= 1 and (parameter == "weight" or parameter.endswith(("scale", "scalar"))):
        return 1 + NORM_SPREAD * noise
    if parameter.endswith(("_min", "_max")):
        return (SMALLEST_BOUND + noise.abs()) * (-1 if parameter.endswith("_min") else 1)
    if parameter == "bias":
        return BIAS_STD * noise
    gain = next((gain for end, gain in gains if name.endswith(end)), 1.0)
    if parameter.endswith(("embedding", "embedding_table")) or (module.endswith("embedding") and len(shape) == 2):
        return gain * noise
    fan_in = shape[-1] if module == "experts" else math.prod(shape[1:])  # experts are one tensor, [experts, out, in]
    return noise * (gain / math.sqrt(fan_in))


def draw_rows(rows: int, width: int, scales: Mapping[int, float], generator: Generator) -> Tensor:
    """An embedding or a head [rows, width]: a random row times its scale for the ids in `scales`, zero for others."""
    table = torch.zeros(rows, width)
    ids = sorted(scales)
    sizes = torch.tensor([scales[one] for one in ids])[:, None]
    table[ids] = torch.randn(len(ids), width, generator=generator) * sizes
    return table


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Stores the tensors in bfloat16, as published, and counters as they are."""
    stored = {name: one.to(torch.bfloat16) if one.is_floating_point() else one for name, one in weights.items()}
    save_file(stored, path, metadata={"format": "pt"})


def make_tokenizer(
    special_tokens: Mapping[int, str], *, first_token: str | None = None, **options: Any
) -> PreTrainedTokenizerFast:
    """The shipped byte-level tokenizer with these special tokens at these ids; `options` go to the class.

    It puts `first_token` before every text. An ordinary token whose id a special one takes gets a free one.
    """
    content = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    shipped = {token["content"] for token in content["added_tokens"]}
    vocabulary = {token: one for token, one in content["model"]["vocab"].items() if token not in shipped}
    free = (one for one in count(max(vocabulary.values()) + 1) if one not in special_tokens)
    vocabulary = {token: next(free) if one in special_tokens else one for token, one in vocabulary.items()}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": one, "content": token, **flags} for one, token in sorted(special_tokens.items())]
    # the tokenizers library keeps ids with gaps between them only if the vocabulary has the tokens too
    content["model"]["vocab"] = vocabulary | {token: one for one, token in special_tokens.items()}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if first_token is not None:
        (first_id,) = (one for one, token in special_tokens.items() if token == first_token)
        tokenizer.post_processor = TemplateProcessing(
            single=f"{first_token} $A", pair=f"{first_token} $A $B", special_tokens=[(first_token, first_id)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)

"""A small copy of a model: its config with small numbers, its own processor and tokenizer, random weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Generator, Tensor

from midsight.checkpoints.headers import INDEX, ONLY_WEIGHTS
from midsight.checkpoints.hub import TEXTS, VOCABULARY
from midsight.checkpoints.quiet import quiet_transformers
from midsight.declaring.folder import UnknownModel
from midsight.testing.random_weights import draw, draw_rows, save_weights

DECODER_LAYERS, ENCODER_LAYERS = 6, 4
WIDTH, HEADS, HEAD_WIDTH = 64, 4, 16
SMALL: Mapping[str, int] = {
    "hidden_size": WIDTH,
    "embed_dim": WIDTH,
    "out_hidden_size": WIDTH,
    "projection_dim": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "alignment_intermediate_size": 2 * WIDTH,
    "moe_intermediate_size": WIDTH,
    "head_dim": HEAD_WIDTH,
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "num_key_value_heads": HEADS // 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 40,
    "attention_chunk_size": 40,
}
"""Largest numbers of the copy, by the names of transformers' configs. Window and chunk are smaller than any prompt."""
WINDOWS = ("sliding_window", "attention_chunk_size")
"""Those that are made small whatever the model's width."""
LAYERS = ("num_hidden_layers", "depth")
"""Names of the number of layers."""
KINDS = ("layer_types", "mlp_layer_types")
"""Lists with an entry for each decoder layer."""
BLOCKS = ("deepstack_visual_indexes", "fullatt_block_indexes")
"""Lists with numbers of the encoder's layers."""
WORD, WORD_IF_TIED = 1.0, 0.3
STOP, STOP_IF_TIED = 2.5, 0.9
CONTROL = 0.01
"""Scales of rows of the head: stop tokens win now and then, other control tokens never do. A head that is the token
embedding has smaller rows, so that a token does not follow itself."""
GAINS = (("q_proj.weight", 1.4), ("k_proj.weight", 1.4), ("qkv.weight", 1.4))
"""So that attention tells positions apart."""
OWN_FILES = (*TEXTS, *VOCABULARY, "tokenizer.model")
NOT_COPIED = ("config.json", INDEX, "adapter_config.json")
MOST_PARAMETERS = 300_000_000
"""Most parameters of a copy; token embedding and head of 262,144 tokens have 34 million."""


@quiet_transformers()
def write_small_copy(model: UnknownModel, folder: Path) -> Path:
    """Writes a folder with a small copy of a model, in transformers' format; raises what its class raises."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in OWN_FILES:
        if name not in NOT_COPIED and (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)
    config = small_config(model.config)
    with torch.device("meta"):
        empty = getattr(transformers, model.architecture)(config)
    parameters = sum(one.numel() for one in empty.parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"it still has {parameters:,} parameters")
    save_weights(random_weights(empty, config, model.processor.tokenizer), folder / ONLY_WEIGHTS)
    config.architectures = [model.architecture]
    config.save_pretrained(folder)
    return folder


def small_config(config: Any) -> Any:
    """The same config with small numbers; everything else stays, and image sizes too: the processor makes them."""
    fields = config.to_dict()
    small = {name: shrink(value) if isinstance(value, dict) else value for name, value in shrink(fields).items()}
    small.pop("quantization_config", None)
    return type(config).from_dict(small)


def shrink(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one part of a config, its large numbers made small."""
    small = dict(fields)
    layers = DECODER_LAYERS if "vocab_size" in fields and "image_size" not in fields else ENCODER_LAYERS
    for name in LAYERS:
        if _is_size(fields.get(name)):
            small[name] = min(fields[name], layers)
    wide = max((fields[name] for name in ("hidden_size", "embed_dim") if _is_size(fields.get(name))), default=0)
    if wide > WIDTH or not wide:
        small |= {name: min(fields[name], most) for name, most in SMALL.items() if _is_size(fields.get(name))}
    else:
        small |= {name: min(fields[name], SMALL[name]) for name in WINDOWS if _is_size(fields.get(name))}
    if fields.get("num_key_value_heads") == fields.get("num_attention_heads") and "num_attention_heads" in fields:
        small["num_key_value_heads"] = small["num_attention_heads"]
    for name in KINDS:
        if isinstance(fields.get(name), list):
            small[name] = some_of_each(fields[name], small["num_hidden_layers"])
    for name in BLOCKS:
        if isinstance(fields.get(name), list):
            small[name] = list(range(min(len(fields[name]), ENCODER_LAYERS - 1)))
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and isinstance(rope.get("mrope_section"), list) and wide > WIDTH:
        pairs = int(HEAD_WIDTH * rope.get("partial_rotary_factor", 1.0)) // 2
        small["rope_parameters"] = {**rope, "mrope_section": scaled(rope["mrope_section"], pairs)}
    return small


def some_of_each(kinds: Sequence[str], layers: int) -> list[str]:
    """The kinds of the first layers; kinds that come later take the last places."""
    chosen = list(kinds[:layers])
    for place, kind in enumerate(sorted({*kinds} - {*chosen}), start=1):
        chosen[-place] = kind
    return chosen


def scaled(parts: Sequence[int], total: int) -> list[int]:
    """Numbers in about the same proportion with another sum."""
    scaled_parts = [max(1, part * total // sum(parts)) for part in parts]
    scaled_parts[-1] += total - sum(scaled_parts)
    return scaled_parts


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def random_weights(empty: Any, config: Any, tokenizer: Any) -> dict[str, Tensor]:
    """A random tensor for each that the class stores; tokens of the tokenizer have rows, other ids have zeros."""
    generator = Generator().manual_seed(0)
    names = {module: name for name, module in empty.named_modules()}
    embedding, head = (names.get(part) for part in (empty.get_input_embeddings(), empty.get_output_embeddings()))
    tied = bool(config.tie_word_embeddings)
    scales = row_scales(config, tokenizer, tied=tied)
    weights = {}
    for name, tensor in sorted(empty.state_dict().items()):
        rows, wide = len(tensor) if tensor.dim() else 0, tensor.dim() == 2
        if name == f"{head}.weight" and tied:
            continue
        if wide and name in (f"{embedding}.weight", f"{head}.weight"):
            own = scales if tied or name == f"{head}.weight" else dict.fromkeys(scales, WORD)
            weights[name] = draw_rows(rows, tensor.shape[1], {i: s for i, s in own.items() if i < rows}, generator)
        elif tensor.is_floating_point():
            weights[name] = draw_tensor(name, tuple(tensor.shape), generator)
    return weights


def draw_tensor(name: str, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """A random tensor; those of experts are joined in one, [experts, outputs, inputs]."""
    if len(shape) == 3:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    return draw(name, shape, generator, GAINS)


def row_scales(config: Any, tokenizer: Any, *, tied: bool) -> dict[int, float]:
    """The scale of the head's row of every token."""
    stops = getattr(config, "eos_token_id", None) or config.get_text_config().eos_token_id
    stop_ids = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
    words = dict.fromkeys(tokenizer.get_vocab().values(), WORD_IF_TIED if tied else WORD)
    controls = dict.fromkeys(tokenizer.added_tokens_decoder, CONTROL)
    return {**words, **controls, **dict.fromkeys(stop_ids, STOP_IF_TIED if tied else STOP)}

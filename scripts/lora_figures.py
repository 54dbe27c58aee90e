"""Measures the figures in docs/checkpoints.md: the error of a merged and of an unmerged LoRA against float32.

Weights and inputs are random. They have the shapes of Phi-4-multimodal's decoder and are stored in bfloat16, as
published. The reference computes with the same stored tensors in float64 (one layer) or float32 (decoder).
Run from the repository root: .venv/bin/python scripts/lora_figures.py [--seeds N] [--layers N] [--part linear|decoder]
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Generator, Tensor, nn
from transformers import Phi4MultimodalConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import (
    Phi4MultimodalDecoderLayer,
    Phi4MultimodalRotaryEmbedding,
)

from midsight.checkpoints.lora import merge_lora

HIDDEN_SIZE, MLP_SIZE, HEADS, KEY_VALUE_HEADS = 3072, 8192, 24, 8
RANK, ALPHA = 256, 512
SCALE = ALPHA / RANK
TOKENS = 100
WEIGHT_STD = 0.02
"""transformers' `initializer_range` for this config; that of the published weights is unknown here."""
UPDATES = (0.01, 0.03, 0.1, 0.3)
"""||scale B A|| / ||W||, Frobenius norms; that of the published LoRA is unknown here."""
GAINS = (0.5, 1.0, 2.0, 4.0)
"""Length of W x, relative to a W with random directions; trained weights amplify the directions of their inputs."""
TARGETS = r"(self_attn\.(qkv_proj|o_proj)|mlp\.(gate_up_proj|down_proj))"
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class WeightWithLora:
    """One weight and its LoRA, in the stored bfloat16."""

    weight: Tensor
    """W, [rows, columns]."""
    a: Tensor
    """Factor A, [rank, columns]."""
    b: Tensor
    """Factor B, [rows, rank]."""


def draw_lora(weight: Tensor, std: float, update: float, generator: Generator) -> WeightWithLora:
    """The weight with a random LoRA; `std` is the weight's standard deviation."""
    rows, columns = weight.shape
    a = torch.randn(RANK, columns, generator=generator) / math.sqrt(columns)
    b = torch.randn(rows, RANK, generator=generator) * (update * std * math.sqrt(columns) / (SCALE * math.sqrt(RANK)))
    return WeightWithLora(weight.bfloat16(), a.bfloat16(), b.bfloat16())


def errors(values: Tensor, reference: Tensor) -> Tensor:
    """||value - reference|| / ||reference|| of every row, float64 [rows]."""
    difference = values.double() - reference.double()
    return difference.norm(dim=-1) / reference.double().norm(dim=-1)


# one linear layer


@torch.inference_mode()
def measure_linear(one: WeightWithLora, inputs: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Mean error of the outputs, merged and unmerged, of one layer computed in `dtype`."""
    x, weight, a, b = (t.double() for t in (inputs, one.weight, one.a, one.b))
    reference = x @ weight.T + SCALE * (x @ a.T) @ b.T
    x, weight, a, b = (t.to(dtype) for t in (inputs, one.weight, one.a, one.b))
    merged = nn.functional.linear(x, merge_lora(one.weight, one.a, one.b, SCALE).to(dtype))
    # as in PEFT's layer: each of three outputs and the sum is rounded
    unmerged = nn.functional.linear(x, weight) + nn.functional.linear(nn.functional.linear(x, a), b) * SCALE
    return errors(merged, reference).mean().item(), errors(unmerged, reference).mean().item()


def turned_weight(inputs_basis: Tensor, rows: int, gain: float, generator: Generator) -> Tensor:
    """A random weight that amplifies inputs in a subspace `gain` times as much as other inputs."""
    columns, size = inputs_basis.shape
    weight = torch.randn(rows, columns, generator=generator)
    inside = weight @ inputs_basis @ inputs_basis.T
    share = size / columns
    # the rest is scaled so that the norm of the whole stays the same
    outside_gain = math.sqrt((1 - gain**2 * share) / (1 - share)) if gain**2 * share < 1 else 0.0
    return gain * inside + outside_gain * (weight - inside)


def measure_linears(seeds: int) -> None:
    """Prints the errors of one gate_up_proj, for updates, standard deviations, gains and dtypes."""
    rows, columns = 2 * MLP_SIZE, HIDDEN_SIZE
    cases = [
        *((torch.bfloat16, WEIGHT_STD, update, 1.0) for update in UPDATES),
        *((torch.bfloat16, std, 0.1, 1.0) for std in (0.005, 0.08)),
        *((torch.bfloat16, WEIGHT_STD, 0.1, gain) for gain in GAINS),
        *((torch.float16, WEIGHT_STD, 0.1, gain) for gain in (1.0, 2.0)),
        *((torch.float32, WEIGHT_STD, update, 1.0) for update in (0.01, 0.3)),
    ]
    print(
        f"one linear layer [{rows}, {columns}], rank {RANK}, {TOKENS} inputs, {seeds} seeds: mean (spread over seeds)"
    )
    print("dtype     W std  update  gain  merged               unmerged             merged/unmerged")
    for dtype, std, update, gain in cases:
        found = []
        for seed in range(seeds):
            generator = Generator().manual_seed(seed)
            basis = torch.linalg.qr(torch.randn(columns, columns // 48, generator=generator)).Q
            weight = std * turned_weight(basis, rows, gain, generator)
            inputs = torch.randn(TOKENS, basis.shape[1], generator=generator) @ basis.T
            inputs = inputs * math.sqrt(columns / basis.shape[1])
            found.append(measure_linear(draw_lora(weight, std, update, generator), inputs.to(dtype), dtype))
        merged, unmerged = zip(*found, strict=True)
        ratios = [m / u for m, u in found]
        name = str(dtype).removeprefix("torch.")
        print(
            f"{name:9} {std:<6} {update:<7.0%} {gain:<5} {spread(merged)}  {spread(unmerged)}  "
            f"{fmean(ratios):.3f} ({stdev(ratios):.3f})",
            flush=True,
        )


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{fmean(values):.2e} ({stdev(values):.0e})"


# a decoder


def make_config(layers: int) -> Phi4MultimodalConfig:
    """The published decoder's widths."""
    config = Phi4MultimodalConfig(
        hidden_size=HIDDEN_SIZE,
        intermediate_size=MLP_SIZE,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        num_hidden_layers=layers,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
    )
    config._attn_implementation = "sdpa"
    return config


def make_layer(config: Phi4MultimodalConfig, dtype: torch.dtype, *, lora: bool) -> Any:
    """A decoder layer of transformers, with PEFT's layers if `lora`; its matrices are set later."""
    with torch.device("meta"):
        layer: Any = Phi4MultimodalDecoderLayer(config, layer_idx=0)
    layer = layer.to_empty(device="cpu")
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        nn.init.ones_(norm.weight)
    if lora:
        config_of_lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0)
        inject_adapter_in_model(config_of_lora, layer)
    return layer.to(dtype).eval()


def set_unmerged(layer: Any, weights: dict[str, WeightWithLora]) -> None:
    """Sets weights and factors of a layer with PEFT's layers."""
    for name, one in weights.items():
        module = layer.get_submodule(name)
        module.base_layer.weight.copy_(one.weight)
        module.lora_A["default"].weight.copy_(one.a)
        module.lora_B["default"].weight.copy_(one.b)


def set_merged(layers: Sequence[Any], weights: dict[str, WeightWithLora]) -> None:
    """Sets merged weights of plain layers, rounded once to the layer's dtype."""
    for name, one in weights.items():
        merged = merge_lora(one.weight, one.a, one.b, SCALE)
        for layer in layers:
            layer.get_submodule(name).weight.copy_(merged)


def with_update(weights: dict[str, WeightWithLora], factor: float) -> dict[str, WeightWithLora]:
    """The same weights with a LoRA update `factor` times as large."""
    return {
        name: WeightWithLora(one.weight, one.a, (one.b.float() * factor).bfloat16()) for name, one in weights.items()
    }


@torch.inference_mode()
def run_decoder(
    layers: int, std: float, updates: Sequence[float], seed: int
) -> Iterator[tuple[int, float, dict[str, Tensor]]]:
    """Yields layer, update, and residual stream [tokens, hidden] by way of computing it, on random embeddings.

    `reference` is float32 with an unmerged LoRA, `off` is float32 without LoRA.
    """
    config = make_config(layers)
    layer_of = {
        "reference": make_layer(config, torch.float32, lora=True),
        "unmerged": make_layer(config, torch.bfloat16, lora=True),
        "float32 merged": make_layer(config, torch.float32, lora=False),
        "merged": make_layer(config, torch.bfloat16, lora=False),
    }
    shapes = {name: layer_of["merged"].get_submodule(name).weight.shape for name in LINEARS}
    generator = Generator().manual_seed(seed)
    embedded = (torch.randn(1, TOKENS, HIDDEN_SIZE, generator=generator) * std).bfloat16()
    states = {
        update: {name: embedded.to(layer.input_layernorm.weight.dtype) for name, layer in layer_of.items()}
        for update in updates
    }
    off = embedded.float()
    rotary = Phi4MultimodalRotaryEmbedding(config)

    def through(layer: Any, hidden_states: Tensor) -> Tensor:
        positions = torch.arange(TOKENS)[None]
        return layer(hidden_states, position_embeddings=rotary(hidden_states, position_ids=positions))

    for index in range(layers):
        drawn = {
            name: draw_lora(torch.randn(shape, generator=generator) * std, std, 1.0, generator)
            for name, shape in shapes.items()
        }
        set_merged([layer_of["float32 merged"]], with_update(drawn, 0.0))
        off = through(layer_of["float32 merged"], off)
        for update in updates:
            weights = with_update(drawn, update)
            for name in ("reference", "unmerged"):
                set_unmerged(layer_of[name], weights)
            set_merged([layer_of["float32 merged"], layer_of["merged"]], weights)
            for name, layer in layer_of.items():
                states[update][name] = through(layer, states[update][name])
            yield index, update, {name: state[0] for name, state in (states[update] | {"off": off}).items()}


def measure_decoders(layers: int, seeds: int) -> None:
    """Prints the errors of the residual stream after each layer, for updates and standard deviations."""
    print(
        f"a decoder of {layers} layers, full width, {TOKENS} tokens, {seeds} seeds: "
        "last token, mean (spread over seeds)"
    )
    print(
        "W std   update  layer  bf16 merged          bf16 unmerged        merged/unmerged, all tokens  "
        "float32 merged  LoRA off"
    )
    for std, updates in ((WEIGHT_STD, UPDATES), (0.01, (0.1,)), (0.04, (0.1,))):
        found: dict[tuple[float, int], list[dict[str, Tensor]]] = {}
        for seed in range(seeds):
            for index, update, states in run_decoder(layers, std, updates, seed):
                reference = states.pop("reference")
                of_ways = {name: errors(state, reference) for name, state in states.items()}
                found.setdefault((update, index), []).append(of_ways)
        for (update, index), by_seed in sorted(found.items()):
            last = {name: [of_ways[name][-1].item() for of_ways in by_seed] for name in by_seed[0]}
            ratios = [(of_ways["merged"].mean() / of_ways["unmerged"].mean()).item() for of_ways in by_seed]
            print(
                f"{std:<7} {update:<7.0%} {index:<6} {spread(last['merged'])}  {spread(last['unmerged'])}  "
                f"{fmean(ratios):.3f} ({stdev(ratios):.3f}){'':16}{fmean(last['float32 merged']):.1e}"
                f"         {fmean(last['off']):.2f}",
                flush=True,
            )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=4, help="at least two")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--part", choices=("linear", "decoder"))
    options = parser.parse_args()
    started = time.time()
    if options.part != "decoder":
        measure_linears(options.seeds)
    if options.part != "linear":
        measure_decoders(options.layers, options.seeds)
    print(f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()

"""Capturing hidden states while a model runs, with forward hooks that keep only the chosen positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from midsight.families.family import Family, decoder_layers
from midsight.prompts.token_layout import TokenLayout
from midsight.taps.positions import read_position
from midsight.taps.tap import Tap


def tapped_module(model: nn.Module, family: Family, tap: Tap) -> nn.Module:
    """The module whose output a tap reads.

    transformers' hidden_states[k + 1] is the output of layer k, except the last one, which is the output of the final
    norm. The residual stage is the last layer's own output.
    """
    layers = decoder_layers(model, family)
    is_last = tap.layer == len(layers) - 1
    return model.get_submodule(family.modules.final_norm) if is_last and tap.stage == "layer" else layers[tap.layer]


@contextmanager
def capture(
    model: nn.Module, family: Family, taps: Sequence[Tap], layouts: Sequence[TokenLayout], rows: Sequence[int]
) -> Iterator[dict[Tap, Tensor]]:
    """Captures the states at each tap during one forward inside the block.

    `layouts` are those of the prompts in their padded rows, and `rows` says in which row each prompt is. Yields a
    dictionary that the forward fills: per tap float32 [prompts, hidden size] on the model's device. States at other
    positions are not kept. The hooks are removed when the block ends.
    """
    taken: dict[Tap, Tensor] = {}
    by_module: dict[nn.Module, list[Tap]] = {}
    for tap in taps:
        by_module.setdefault(tapped_module(model, family, tap), []).append(tap)

    hf_model: Any = model
    read, final_norm = family.decoder.layer_state, model.get_submodule(family.modules.final_norm)

    def take(module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden_states = output if isinstance(output, Tensor) else output[0]
        if read is not None and module is not final_norm:
            hidden_states = read(hf_model.config, hidden_states)
        for tap in by_module[module]:
            taken[tap] = read_position(hidden_states, layouts, tap.position, rows)

    with ExitStack() as hooks:
        for module in by_module:
            hooks.callback(module.register_forward_hook(take).remove)
        yield taken

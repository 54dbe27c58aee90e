"""Taking hidden states while a model runs: forward hooks that keep the chosen positions only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from midsight.models.adapter import Adapter, decoder_layers, submodule
from midsight.models.layout import TokenLayout
from midsight.taps.positions import read_position
from midsight.taps.tap import Tap


def tapped_module(model: nn.Module, adapter: Adapter, tap: Tap) -> nn.Module:
    """The module whose output a tap reads.

    transformers' hidden_states[k + 1] is the output of layer k, and after the last layer that of
    the final norm; the residual stage is the last layer's own output.
    """
    layers = decoder_layers(model, adapter)
    is_last = tap.layer == len(layers) - 1
    return submodule(model, adapter.final_norm) if is_last and tap.stage == "layer" else layers[tap.layer]


@contextmanager
def capture(
    model: nn.Module, adapter: Adapter, taps: Sequence[Tap], layouts: Sequence[TokenLayout], rows: Sequence[int]
) -> Iterator[dict[Tap, Tensor]]:
    """Hooks the tapped modules for one forward and yields what they will have seen.

    The dictionary fills during the forward: each tap float32 [prompts, hidden size], on the model's device, of the
    prompts with these layouts in these rows. Nothing of full sequence length is kept. The hooks are gone when the
    block ends.
    """
    taken: dict[Tap, Tensor] = {}
    by_module: dict[nn.Module, list[Tap]] = {}
    for tap in taps:
        by_module.setdefault(tapped_module(model, adapter, tap), []).append(tap)

    def take(module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden_states = output if isinstance(output, Tensor) else output[0]
        for tap in by_module[module]:
            taken[tap] = read_position(hidden_states, layouts, tap.position, rows)

    with ExitStack() as hooks:
        for module in by_module:
            hooks.callback(module.register_forward_hook(take).remove)
        yield taken

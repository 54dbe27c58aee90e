"""Where a hidden state is taken, and the one way to spell it as a column name."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from midsight.errors import MidsightError, Option

Position = Literal["vision_token", "query_token", "image_mean"]
"""Which tokens of the prompt: the last image token, the last prompt token, the mean of all image tokens."""

Stage = Literal["layer", "residual"]
"""`layer`: transformers' hidden_states[k + 1] (the last one after the final norm). `residual`: the
last layer's output before the final norm."""

POSITIONS: tuple[Position, ...] = get_args(Position)
DEFAULT_POSITIONS: tuple[Position, ...] = ("vision_token", "query_token")

_SPELLING = re.compile(r"(?P<position>[a-z_]+)_representation\.layer_(?P<layer>0|[1-9][0-9]*)(?P<residual>_residual)?")


@dataclass(frozen=True)
class Tap:
    """A decoder hidden state at one position of the prompt, after one layer.

    Its spelling is the column name: `query_token_representation.layer_16`,
    `vision_token_representation.layer_31_residual`.

    Args:
        position: Which tokens of the prompt: `vision_token` (the last of the image), `query_token` (the last), or
            `image_mean` (all of the image, averaged).
        layer: Decoder layer whose output is taken, from 0.
        stage: `layer`, which for the last layer is after the final norm, or `residual`, before it.

    Raises:
        MidsightError: A position or stage that does not exist, or a negative layer.
    """

    position: Position
    layer: int
    stage: Stage = "layer"

    def __post_init__(self) -> None:
        if self.position not in POSITIONS:
            raise MidsightError(f"The position {self.position!r} is unknown; choose from {', '.join(POSITIONS)}.")
        if self.stage not in get_args(Stage):
            raise MidsightError(f"The stage {self.stage!r} is unknown; choose from {', '.join(get_args(Stage))}.")
        if self.layer < 0:
            raise MidsightError(f"The layer {self.layer} of a tap is negative; count from the first, which is 0.")

    def __str__(self) -> str:
        suffix = "_residual" if self.stage == "residual" else ""
        return f"{self.position}_representation.layer_{self.layer}{suffix}"

    @classmethod
    def parse(cls, text: str) -> Tap:
        """The tap with a spelling.

        Args:
            text: A column name, like `query_token_representation.layer_16`.

        Returns:
            The tap that prints as `text`.

        Raises:
            MidsightError: No tap has this spelling.
        """
        tap = cls.parse_or_none(text)
        if tap is None:
            raise MidsightError(
                f"{text!r} is not the name of a tap; write POSITION_representation.layer_K with POSITION one of "
                f"{', '.join(POSITIONS)}, and add _residual for the state before the final norm."
            )
        return tap

    @classmethod
    def parse_or_none(cls, text: str) -> Tap | None:
        """The tap with a spelling, if there is one.

        Args:
            text: A column name.

        Returns:
            The tap, or None, as for columns that hold other vectors.
        """
        match = _SPELLING.fullmatch(text)
        if match is None or match["position"] not in POSITIONS:
            return None
        stage: Stage = "residual" if match["residual"] else "layer"
        return cls(cast("Position", match["position"]), int(match["layer"]), stage)


def choose_layers(choice: str | int | Iterable[int], n_layers: int) -> tuple[int, ...]:
    """The decoder layers that `choice` names, ascending, each once.

    `default` is the first, the last and the quarters: sorted({0, n//4, n//2, 3*n//4, n-1}). `all` is
    every layer. Anything else is one integer or a list of integers (`"0,8,-1"` or `[0, 8, -1]`);
    negative ones count from the end. Raises MidsightError for a layer that the model does not have.
    """
    if n_layers < 1:
        raise MidsightError(f"The model has {n_layers} decoder layers, so there are none to choose from.")
    if isinstance(choice, str) and choice == "default":
        return tuple(sorted({0, n_layers // 4, n_layers // 2, 3 * n_layers // 4, n_layers - 1}))
    if isinstance(choice, str) and choice == "all":
        return tuple(range(n_layers))
    chosen: set[int] = set()
    for item in _listed(choice):
        try:
            index = int(item) if isinstance(item, str) else operator.index(item)
        except (ValueError, TypeError):
            raise MidsightError(
                Option("layers"),
                f" contains {item!r}, which is not a number; give default, all, or numbers like 0,8,16.",
            ) from None
        if not -n_layers <= index < n_layers:
            raise MidsightError(
                Option("layers"),
                f" contains {index}, and the model has the layers 0 to {n_layers - 1}; give one of them.",
            )
        chosen.add(index % n_layers)
    if not chosen:
        raise MidsightError(Option("layers"), " names no layer; give default, all, or numbers like 0,8,16.")
    return tuple(sorted(chosen))


def _listed(choice: Any) -> Iterable[Any]:
    if isinstance(choice, str):
        return choice.split(",")
    return choice if isinstance(choice, Iterable) else [choice]


def choose_positions(choice: str | Sequence[str]) -> tuple[Position, ...]:
    """The positions that `choice` names (`"vision_token,query_token"` or a list), in the order of POSITIONS.

    Raises MidsightError for an unknown position or an empty choice.
    """
    names = [name.strip() if isinstance(name, str) else name for name in _listed(choice)]
    unknown = [name for name in names if name not in POSITIONS]
    if unknown or not names:
        given = f"contains {', '.join(map(repr, unknown))}" if unknown else "is empty"
        raise MidsightError(Option("positions"), f" {given}; choose from {', '.join(POSITIONS)}.")
    return tuple(position for position in POSITIONS if position in names)


def choose_taps(
    positions: Sequence[Position], layers: Sequence[int], n_layers: int, *, residual: bool = False
) -> tuple[Tap, ...]:
    """The taps at every position and layer, positions outermost.

    With `residual`, and if `layers` contains the last layer, its state before the final norm is added.
    """
    taps: list[Tap] = []
    for position in positions:
        taps.extend(Tap(position, layer) for layer in layers)
        if residual and n_layers - 1 in layers:
            taps.append(Tap(position, n_layers - 1, "residual"))
    return tuple(taps)

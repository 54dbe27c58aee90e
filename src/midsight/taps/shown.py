"""How vector columns, and the objects that hold them, are written in a Python session and in messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from midsight.errors import MidsightError
from midsight.taps.tap import Tap


def vector_shapes(widths: Mapping[str, int]) -> list[tuple[str, int]]:
    """Vector columns and their widths; the layers of one position are one entry.

    >>> vector_shapes({"pixels": 3, "query_token_representation.layer_0": 8, "query_token_representation.layer_7": 8})
    [('pixels', 3), ('query_token_representation, layers 0, 7', 8)]
    """
    layers: dict[tuple[str, int], list[str]] = {}
    for name, width in widths.items():
        tap = Tap.parse_or_none(name)
        layer = name.rpartition(".layer_")[2].replace("_", " ")
        layers.setdefault((f"{tap.position}_representation" if tap else name, width), []).extend([layer] if tap else [])
    return [(f"{name}, {list_layers(of)}" if of else name, width) for (name, width), of in layers.items()]


def list_layers(layers: Sequence[object]) -> str:
    """`layer 0`, `layers 0, 8`."""
    return f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers))}"


def in_lines(head: str, facts: Mapping[str, str], widths: Mapping[str, int]) -> str:
    """A few lines of text: a head, facts, and the shapes of vectors."""
    shapes = {name: f"[{width}]" for name, width in vector_shapes(widths)}
    return "\n".join([head, *(f"  {name}: {value}" for name, value in {**facts, **shapes}.items())])


def shorten(text: str) -> str:
    """At most 80 characters of a text."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_html(head: str, facts: Mapping[str, str], widths: Mapping[str, int]) -> str:
    """The same as an HTML table; everything is escaped, because it comes from datasets."""
    shapes = {name: f"[{width}]" for name, width in vector_shapes(widths)}
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(name)}</td><td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in {**facts, **shapes}.items()
    )
    return f"<table><caption style='text-align:left'>{escape(head)}</caption>{rows}</table>"


def layers_held(name: str, columns: Iterable[str]) -> list[int]:
    """The layers of a position's representation `name` among vector columns; empty if `name` is something else."""
    taps = [tap for column in columns if (tap := Tap.parse_or_none(column)) and tap.stage == "layer"]
    return sorted({tap.layer for tap in taps if f"{tap.position}_representation" == name})


def no_such_column(path: object, name: str, columns: Sequence[str]) -> MidsightError:
    """The error for a column that a run does not have."""
    layers = layers_held(name, columns)
    if layers:
        return MidsightError(
            f"{path} has {name} at the {list_layers(layers)}, each in a column of its own; write "
            f"{name}.layer_{layers[0]}{' and so on' if len(layers) > 1 else ''}."
        )
    return MidsightError(f"{path} has no column {name!r}; it has {', '.join(columns)}.")

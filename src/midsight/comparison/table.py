"""The comparison as a table for the terminal, as Markdown, and as plain data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from midsight.comparison.rows import ModelRow
from midsight.comparison.sizes import TYPICAL_IMAGE

TWO_WIDTHS = (
    "{family}: {width} is the width of the vision encoder's features (vision_only_representation). "
    "{columns} is the side of the processor's crops in pixels. The mean of the crops over crops, channels and rows is "
    "{columns} pixel columns, which no network has seen (processor_pooled_pixels). Scripts that pool the processor's "
    "output store these {columns} numbers as vision features."
)
"""Explains the two widths of a family whose images are cut into crops."""
MODEL_CHARACTERS = 28
"""Narrowest column, in characters, in which a model's cells can be read beside those of others."""
NAME_CHARACTERS = 20
"""Characters that the column of names takes."""
SIZE = " x ".join(map(str, TYPICAL_IMAGE))
"""The image whose tokens are counted, in words."""


def cells(row: ModelRow) -> dict[str, str]:
    """The cells of one model: name and value."""
    by_part = ", ".join(
        f"{part} {billions(count)}" + (" (not loaded)" if part in row.left_out else "")
        for part, count in sorted(row.parameters.items(), key=lambda item: -item[1])
    )
    also_published = f", {row.also_published}" if row.also_published else ""
    parameters = f"not counted: {row.lacks} is not installed" if row.lacks else f"{row.total_parameters:,}"
    return {
        "family": row.family,
        "vision encoder": row.vision_encoder,
        "vision width": str(row.vision_width),
        "processor columns": "none" if row.processor_columns is None else str(row.processor_columns),
        "vision access": row.vision_access,
        "language layers": f"{row.layers}, by default {', '.join(map(str, row.default_layers))}",
        "hidden width": str(row.hidden_size),
        "image token": row.image_token,
        "image token id": str(row.image_token_id),
        "image tokens": "unknown, without processor" if row.image_tokens is None else str(row.image_tokens),
        "shares prefix": "yes" if row.shares_prefix else "no",
        "template": row.template.replace("\n", "\\n"),
        "parameters": f"{parameters}{also_published}",
        "by part": by_part,
        "sizes from": row.origin,
    }


def render_overview(rows: Sequence[ModelRow]) -> RenderableType:
    """A line for each model, with what a choice between families depends on; of the encoder, its name."""
    numbers = {"vision width": 6, "hidden width": 6, "layers": 6}
    names = {"family": None, "vision encoder": None, **numbers, "image tokens": 6, "shares prefix": 6}
    table = Table(*(Column(name, width=width, overflow="fold") for name, width in names.items()), padding=(0, 1, 0, 0))
    for row in rows:
        encoder = row.vision_encoder.partition(",")[0]
        values = {**cells(row), "vision encoder": encoder, "layers": str(row.layers)}
        table.add_row(*(Text(values[name], overflow="fold") for name in names))
    published = ", ".join(row.name for row in rows)
    return Group(
        table,
        Text(f"Image tokens are those of an image of {SIZE}. The sizes are those of {published}."),
        Text("Name models, these or others, to see every column."),
    )


def billions(count: int) -> str:
    """A count in billions, or in full if it is small."""
    return f"{count / 1e9:.2f} B" if count >= 1e7 else f"{count:,}"


def notes(rows: Sequence[ModelRow]) -> list[str]:
    """An explanation of the two widths for each family that has both."""
    found = [
        TWO_WIDTHS.format(family=row.family, width=row.vision_width, columns=row.processor_columns)
        for row in rows
        if row.processor_columns is not None
    ]
    return list(dict.fromkeys(found))


def render_models(rows: Sequence[ModelRow], width: int) -> RenderableType:
    """A table for a terminal of `width` characters, with a column for each model; below each other if it is narrow."""
    if NAME_CHARACTERS + MODEL_CHARACTERS * len(rows) > width:
        return Group(*(_below_each_other(row) for row in rows), *(Text(note) for note in notes(rows)))
    table = Table(Column("", style="bold"), *(Column(Text(row.name), overflow="fold") for row in rows), show_lines=True)
    columns = [cells(row) for row in rows]
    for name in columns[0]:
        table.add_row(Text(name), *(Text(column[name], overflow="fold") for column in columns))
    return Group(table, *(Text(note) for note in notes(rows)))


def _below_each_other(row: ModelRow) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    for name, value in cells(row).items():
        facts.add_row(Text(f"  {name}", style="bold"), Text(value, overflow="fold"))
    return Group(Text(row.name, style="bold", overflow="fold"), facts, Text())


def models_as_markdown(rows: Sequence[ModelRow]) -> str:
    """The same table in Markdown; text of prompts is set as code."""
    columns = [cells(row) for row in rows]

    def line(name: str, values: Sequence[str]) -> str:
        return f"| {' | '.join([name, *values])} |"

    def cell(name: str, value: str) -> str:
        escaped = value.replace("|", "\\|")
        return f"`{escaped}`" if name in {"image token", "template", "vision access"} else escaped

    head = [line("", [row.name.replace("|", "\\|") for row in rows]), line("---", ["---"] * len(rows))]
    body = [line(name, [cell(name, column[name]) for column in columns]) for name in columns[0]]
    return "\n".join([*head, *body, *(f"\n{note}" for note in notes(rows))])


def models_as_json(rows: Sequence[ModelRow]) -> dict[str, Any]:
    """Rows and notes as plain data."""
    models = [{**asdict(row), "total_parameters": row.total_parameters} for row in rows]
    return {"models": models, "notes": notes(rows)}

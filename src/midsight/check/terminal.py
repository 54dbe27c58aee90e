"""Facts and proofs as the terminal shows them, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from midsight.check.facts import ModelFacts
from midsight.models.loading import SPARE_MEMORY
from midsight.testing.checks import Check


def render_facts(facts: ModelFacts) -> RenderableType:
    """A table of what the folder is."""
    table = Table.grid(padding=(0, 2))
    for name, value in describe(facts).items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    return table


def describe(facts: ModelFacts) -> dict[str, str]:
    """The lines of the table: name and value."""
    parts = {
        f"  {part}": f"{count:,}" + (" (left out)" if part in facts.left_out else "")
        for part, count in facts.parameters.items()
    }
    memory = {
        f"weights in {dtype}": describe_size(size, facts.free_bytes) for dtype, size in facts.memory_bytes.items()
    }
    free = ", ".join(f"{decimal(size)} on {device}" for device, size in facts.free_bytes.items())
    return {
        "model": facts.source,
        "layout": facts.layout,
        "family": f"{facts.family} ({facts.architecture})",
        "revision": facts.revision or "a plain folder, none known",
        "fingerprint": facts.fingerprint,
        "parameters stored": f"{sum(facts.parameters.values()):,}",
        **parts,
        "LoRA for images": facts.lora,
        "layers": f"{facts.layers}, by default {', '.join(map(str, facts.default_layers))}",
        "widths": f"{facts.hidden_size} decoder, {facts.vision_width} vision encoder",
        "image token": f"{facts.image_token} {facts.image_token_id}",
        "stop ids": ", ".join(map(str, facts.stop_ids)),
        "longrope border": f"{facts.longrope_border_tokens} tokens" if facts.longrope_border_tokens else "none",
        "example prompt": facts.example_prompt,
        "its token ids": " ".join(map(str, facts.example_token_ids)),
        **memory,
        "free here": free,
    }


def describe_size(size_bytes: int, free_bytes: Mapping[str, int]) -> str:
    """A size and the devices that have room for it."""
    roomy = [device for device, free in free_bytes.items() if size_bytes <= SPARE_MEMORY * free]
    return f"{decimal(size_bytes)}, " + (f"fits on {', '.join(roomy)}" if roomy else "more than is free here")


def render_checks(checks: Sequence[Check]) -> RenderableType:
    """A table of figures, limits and verdicts."""
    table = Table("what was compared", "figure", "limit", "verdict")
    for check in checks:
        bound = f"at least {check.limit:.3g}" if check.must_differ else f"at most {check.limit:.3g}"
        verdict = Text("ok", style="green") if check.passed else Text("MISSED", style="red")
        table.add_row(Text(check.name), f"{check.figure:.3g}", bound, verdict)
    missed = sum(not check.passed for check in checks)
    closing = f"{missed} of {len(checks)} limits missed." if missed else f"All {len(checks)} limits kept."
    return Group(table, Text(closing))


def checks_as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Every check as plain data, its verdict among it."""
    return [{**asdict(check), "passed": check.passed} for check in checks]

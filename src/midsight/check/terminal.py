"""Facts and proofs for the terminal, and as plain data for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from midsight.check.facts import ModelFacts
from midsight.check.proof import Proof
from midsight.checkpoints.loading import SPARE_MEMORY
from midsight.errors import counted

TEMPLATES = {
    "folder": "the folder's own",
    "family": "the published model's, because the folder has none for an image and a text",
    "none": "none for an image and a text; give --prompt-template a file with one, or raw",
}
"""Where the chat template is from, in words."""


def render_facts(facts: ModelFacts) -> RenderableType:
    """The facts as a table."""
    table = Table.grid(padding=(0, 2))
    for name, value in describe(facts).items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    return table


def describe(facts: ModelFacts) -> dict[str, str]:
    """The rows of the table: name and value."""
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
        **({"base model": facts.base} if facts.base is not None else {}),
        **({"folder": facts.folder} if facts.folder not in (facts.source, facts.base) else {}),
        "format": facts.format,
        "family": f"{facts.family} ({facts.architecture})",
        "revision": facts.revision or "none, a plain folder",
        "fingerprint": facts.fingerprint,
        "parameters stored": f"{sum(facts.parameters.values()):,}",
        **parts,
        "LoRA for images": facts.lora,
        "layers": f"{facts.layers}, by default {', '.join(map(str, facts.default_layers))}",
        "widths": f"{facts.hidden_size} decoder, {facts.vision_width} vision encoder",
        "image token": f"{facts.image_token} {facts.image_token_id}",
        "stop ids": ", ".join(map(str, facts.stop_ids)),
        "longrope threshold": f"{facts.longrope_threshold_tokens} tokens"
        if facts.longrope_threshold_tokens
        else "none",
        **({"notes": " ".join(facts.notes)} if facts.notes else {}),
        **describe_prompt(facts),
        **memory,
        "free here": free,
    }


def describe_prompt(facts: ModelFacts) -> dict[str, str]:
    """The rows about the chat template and the prompt that it renders."""
    rows = {"chat template": TEMPLATES[facts.chat_template]}
    if facts.prompt_notes:
        rows["prompt"] = " ".join(facts.prompt_notes)
    if facts.example_prompt:
        rows["example prompt"] = facts.example_prompt
        rows["its token ids"] = " ".join(map(str, facts.example_token_ids))
    return rows


def describe_size(size_bytes: int, free_bytes: Mapping[str, int]) -> str:
    """A size, and the devices that have room for it."""
    roomy = [device for device, free in free_bytes.items() if size_bytes <= SPARE_MEMORY * free]
    return f"{decimal(size_bytes)}, " + (f"fits on {', '.join(roomy)}" if roomy else "more than is free here")


def render_proof(proof: Proof) -> RenderableType:
    """How the model was loaded, and the checks as a table."""
    prompt = Text(f"Prompt: {proof.prompt!r}.")
    loaded = Text(f"Loaded in {proof.dtype} on {proof.device}, attention {proof.attention}, LoRA {proof.lora}.")
    sentences = [Text(sentence) for sentence in (*proof.notes, *proof.fixes)]
    table = Table(box=SIMPLE_HEAD)
    for name, width in (("what was compared", None), ("figure", None), ("limit", 8), ("in", 8), ("verdict", None)):
        table.add_column(name, width=width, no_wrap=name in ("figure", "verdict"))
    for check in proof.checks:
        bound = f"at least {check.limit:.3g}" if check.must_differ else f"{check.limit:.3g}"
        verdict = Text("ok", style="green") if check.passed else Text("MISSED", style="red")
        name = f"{check.name} ({check.error})" if check.error else check.name
        table.add_row(Text(name), f"{check.figure:.3g}", bound, check.unit, verdict)
    missed = sum(not check.passed for check in proof.checks)
    total = len(proof.checks)
    closing = "The limit is kept." if total == 1 else f"All {total} limits kept."
    if missed:
        closing = f"{missed} of {counted(total, 'limit')} missed."
    return Group(loaded, *sentences, prompt, table, Text(closing))


def as_plain_data(facts: ModelFacts, proof: Proof | None) -> dict[str, Any]:
    """Facts and proof as plain data; a figure that is not finite is None."""
    if proof is None:
        return {"model": asdict(facts), "loaded": None, "checks": []}
    loaded = asdict(proof)
    del loaded["checks"]
    checks = [
        {**asdict(check), "figure": check.figure if math.isfinite(check.figure) else None, "passed": check.passed}
        for check in proof.checks
    ]
    return {"model": asdict(facts), "loaded": loaded, "checks": checks}

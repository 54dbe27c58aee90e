"""What became of a model, for the terminal, and as plain data for JSON."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from midsight.check.terminal import render_proof
from midsight.declaring.declare import Outcome, files_of
from midsight.errors import counted


def render_outcome(outcome: Outcome) -> RenderableType:
    """The proof, what is open, and the files."""
    proof = [] if outcome.proof is None else [render_proof(outcome.proof)]
    return Group(*proof, *(Text(line) for line in lines_of(outcome)))


def lines_of(outcome: Outcome) -> Iterator[str]:
    """What follows the proof."""
    if outcome.file is None:
        yield f"{counted(len(outcome.open), 'thing')} open for {outcome.model} ({outcome.model_type}):"
        yield from (f"  - {sentence}" for sentence in outcome.open)
        yield "Nothing was written. The page 'Adding a model' shows how to declare a family by hand."
        return
    yield "Not shown by a proof on a small copy:"
    yield from (f"  - {sentence}" for sentence in outcome.not_measured)
    yield f"Wrote {' and '.join(map(str, files_of(outcome)))}."
    model, family = (shlex.quote(str(one)) for one in (outcome.model, outcome.file))
    yield f"Use it with: midsight extract DATA --model {model} --family {family} --out RUN"


def outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain data; a figure that is not finite is None."""
    checks = outcome.proof.checks if outcome.proof else ()
    return {
        "model": outcome.model,
        "model_type": outcome.model_type,
        "files": [*map(str, files_of(outcome))],
        "open": [*outcome.open],
        "not_measured": [*outcome.not_measured],
        "checks": [
            {**asdict(check), "figure": check.figure if math.isfinite(check.figure) else None, "passed": check.passed}
            for check in checks
        ],
    }

"""The dataset card of a run: what it is, in words and in the fields that the hub's viewer reads."""

from __future__ import annotations

import hashlib
import json

from midsight.analysis import Run
from midsight.errors import counted
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.store.hub import HubAddress

DEFINITIONS = {
    VISION_ONLY: "mean of the vision encoder's output over the image's tokens, before the language model",
    PROCESSOR_POOLED_PIXELS: "mean of the processor's pixels, which no model has seen",
    "vision_token_representation": "hidden state at the image's last token in the prompt",
    "query_token_representation": "hidden state at the prompt's last token, from which the first token is predicted",
    "image_mean_representation": "mean of the hidden states at the image's tokens",
}
"""Vector columns by what comes before their layer."""
MARK = "\n<!-- As midsight push wrote it; SHA-256 of the text above: "
"""Begins the last line of a card, by which the next upload knows whether somebody has edited it."""


def write_card(run: Run, address: HubAddress) -> str:
    """The text of README.md.

    Args:
        run: The run.
        address: Where it will be.

    Returns:
        Markdown under YAML, whose `configs` make the hub's viewer and `datasets.load_dataset` read the parts.
    """
    head = {
        "pretty_name": f"{run.spec.model.name}: hidden states of {counted(len(run), 'sample')}",
        "tags": ["midsight", "hidden-states", "vision-language-model"],
        "configs": [{"config_name": "default", "data_files": "parts/*.parquet"}],
    }
    # JSON is YAML; one line for each field
    yaml = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    lines = ["---", *yaml, "---", *_about(run), *_columns(run), *_findings(run), *_how_to_open(address), ""]
    text = "\n".join(lines)
    return f"{text}{MARK}{_sha256(text)} -->\n"


def is_unchanged(card: str) -> bool:
    """Whether a card is as `write_card` made one, so that nobody has edited it."""
    text, mark, end = card.rpartition(MARK)
    return mark != "" and end.strip() == f"{_sha256(text)} -->"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _about(run: Run) -> list[str]:
    spec = run.spec
    model, made = spec.model, f"by midsight {spec.environment.midsight_version}"
    rows = f"{counted(len(run), 'sample')} of `{in_code(spec.dataset.path or 'data from Python')}`"
    lines = [
        f"# {in_text(model.name)}: what it computes on its way to an answer",
        "",
        f"{rows}, {len(run.failures()):,} failed, extracted {made}.",
        "No licence is given here: whoever shares this states one.",
        "",
        f"* Model: `{in_code(model.name)}`, revision {model.revision or 'not known'}",
        f"* Precision: {model.dtype or 'not known'}",
        f"* Layers: {', '.join(map(str, spec.request.layers))} of {spec.model.layers}",
    ]
    if spec.prompt.rendered is not None:
        lines += [f"* Prompt: `{in_code(spec.prompt.rendered)}`"]
    if spec.imported is not None:
        lines += [f"* Imported from {in_text(spec.imported.source)}: {in_text(spec.imported.note)}"]
    return [*lines, ""]


def _columns(run: Run) -> list[str]:
    lines = ["## Vector columns", "", "| column | width | what it is |", "| --- | ---: | --- |"]
    for name, width in run.spec.vectors.items():
        lines.append(f"| `{name}` | {width} | {DEFINITIONS.get(name.partition('.')[0], '')} |")
    return [*lines, "", "`layer_k` is the output of decoder layer k, from 0; the last layer's is after the final norm, "
            "unless the name ends with `.residual`.", ""]  # fmt: skip


def _findings(run: Run) -> list[str]:
    tables = sorted((run.path / "findings").glob("*/finding.md"))
    return [line for path in tables for line in (path.read_text(encoding="utf-8").rstrip(), "")]


def _how_to_open(address: HubAddress) -> list[str]:
    return [
        "## How to open it", "", "```python", "import midsight", "",
        f'run = midsight.open_run("{address}")', "```", "",
        f'`datasets.load_dataset("{address.repository}")` reads the same rows as plain columns.',
    ]  # fmt: skip


def in_text(text: str) -> str:
    """Text from a run in one line of Markdown: no markup of its own works in it."""
    shown = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|!&~" else letter for letter in shown)


def in_code(text: str) -> str:
    """The same inside of backticks."""
    return " ".join(text.split()).replace("`", "'").replace("|", "¦")

"""What was run, as names and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midsight.reports.page.content import Report

Facts = list[tuple[str, str]]
LEFT_OUT = {
    "model": (), "prompt": ("rendered",), "request": (), "dataset": (), "environment": ("packages",),
}  # fmt: skip
"""Objects of run.json that are shown, with keys that are shown elsewhere."""
TITLES = {
    "model": "Model", "prompt": "Prompt", "request": "What was extracted", "dataset": "Dataset",
    "environment": "Where it ran",
}  # fmt: skip


def groups_of_facts(report: Report) -> list[tuple[str, Facts]]:
    """A heading and its facts, for each object of run.json; what is unknown or empty is left out."""
    groups = [
        (TITLES[key], [(name.replace("_", " "), text) for name, value in report.spec[key].items()
                       if name not in hidden and (text := _text(value))])
        for key, hidden in LEFT_OUT.items()
    ]  # fmt: skip
    packages: Mapping[str, str] = report.spec["environment"]["packages"]
    about = [("run", report.path), ("run id", report.spec["run_id"]), ("started", report.spec["created"])]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    groups[-1][1].append(("packages", versions))
    return [("Run", about), *groups]


def _text(value: Any) -> str:
    """The value in words; empty for what is unknown."""
    if value is None or value in ([], {}, "{}"):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return repr("") if value == "" else str(value)


def prompt_example(report: Report) -> str:
    """One prompt as it was rendered; empty if unknown."""
    return report.spec["prompt"]["rendered"] or ""

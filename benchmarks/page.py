"""Result files, their tables, and docs/performance.md. Only this module writes the figures of that page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.figure import curves_svg

RESULTS = Path(__file__).with_name("results")
DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"
FIGURE = DOCS / "performance-curves.svg"
BEGIN, END = "<!-- written by make bench -->", "<!-- end of what make bench wrote -->"
ORDER = ("mid-cpu", "demo-cpu", "full-cuda")
"""Results that the page shows if their files exist."""
CURVES = ("curves-mid-cpu", "curves-full-cuda")
PHASES = ("vision", "prefill", "decode", "store", "waiting")


def write_result(name: str, report: dict[str, Any]) -> None:
    """Writes one result as JSON."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def read_result(name: str) -> dict[str, Any] | None:
    """Reads a result; None if there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def ratio(case: dict[str, Any], procedure: str = "midsight") -> float:
    """Speed of a procedure divided by the original's."""
    return case["original"]["seconds"] / case[procedure]["seconds"]


def table(report: dict[str, Any]) -> list[str]:
    """Table of speed and memory, one row per case."""
    lines = [
        f"| {report['size']}, {report['device']} | samples per second: original | plain batches | midsight | "
        "plain batches, ratio | midsight, ratio | target | peak memory, original | plain batches | midsight |",
        "| --- |" + " ---: |" * 9,
    ]
    for case in report["cases"]:
        each = [case[name] for name in ("original", "batches", "midsight")]
        cells = [f"{case['samples'] / one['seconds']:.3g}" for one in each]
        cells += [f"{ratio(case, 'batches'):.1f} x", f"**{ratio(case):.1f} x**"]
        cells.append(f"{case['target']:.1f} x" if case["target"] else "")
        cells += [f"{one['peak_bytes'] / 1e9:.2f} GB" for one in each]
        lines.append(f"| {case['name']} | " + " | ".join(cells) + " |")
    return lines


def phase_table(report: dict[str, Any]) -> list[str]:
    """Table of midsight's time by phase, one row per case."""
    lines = [
        f"| {report['size']}, {report['device']} | samples | batch | "
        + " | ".join(PHASES)
        + " | vision, share of peak | prefill, share of peak |",
        "| --- |" + " ---: |" * (len(PHASES) + 4),
    ]
    for case in report["cases"]:
        midsight = case["midsight"]
        cells = [f"{100 * midsight['phases'][name]:.0f} %" for name in PHASES]
        cells += [f"{100 * midsight['peak_shares'][name]:.0f} %" for name in ("vision", "prefill")]
        lines.append(f"| {case['name']} | {case['samples']} | {case['batch_size']} | " + " | ".join(cells) + " |")
    return lines


def targets(report: dict[str, Any]) -> list[str]:
    """The targets that are not ratios, each with the measured value."""
    lines = []
    for case in report["cases"]:
        midsight, original = case["midsight"], case["original"]
        if report["size"] == "demo":
            outside = midsight["phases"]["store"] + midsight["phases"]["waiting"]
            lines.append(f"* {case['name']}: {100 * outside:.0f} % outside the model (target: under 15 %).")
        elif case["batch_size"] == 8:
            more = (midsight["peak_bytes"] - original["peak_bytes"]) / 1e9
            lines.append(
                f"* {case['name']}: with batches of 8, peak memory differs by {more:+.2f} GB from the original with "
                "single samples (target: at most +1 GB)."
            )
    return lines


def describe_machine(report: dict[str, Any]) -> str:
    """The command, its date and the machine, in one sentence."""
    machine = report["cases"][0]["midsight"]["machine"]
    peak = max(case["midsight"]["peak_flops"] for case in report["cases"])
    return (
        f"`{report['command']}` on {report['date']}: {machine['processor']}, {machine['threads']} threads of "
        f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB, torch {machine['torch']}; fastest matrix "
        f"product {peak / 1e9:,.0f} GFLOP/s."
    )


def curve_table(report: dict[str, Any]) -> list[str]:
    """Table of the points in the figure."""
    lines = ["| seconds per question | midsight | original |", "| --- | ---: | ---: |"]
    xs = dict.fromkeys((point["curve"], point["x"]) for point in report["points"])
    for curve, x in xs:
        at = {p["procedure"]: p["seconds"] for p in report["points"] if (p["curve"], p["x"]) == (curve, x)}
        original = f"{at['original']:.3f}" if "original" in at else ""
        lines.append(f"| {curve}: {x} | {at['midsight']:.3f} | {original} |")
    return lines


def render() -> str:
    """All results that exist, one after the other."""
    blocks: list[list[str]] = []
    for name in ORDER:
        if report := read_result(name):
            blocks += [[describe_machine(report)], table(report), targets(report), phase_table(report)]
    for name in CURVES:
        if report := read_result(name):
            blocks.append([f"`{report['command']}` on {report['date']}:"])
            if name == CURVES[0]:
                blocks.append([f"![Cost per question]({FIGURE.name})"])
            blocks.append(curve_table(report))
    return "\n\n".join("\n".join(block) for block in blocks if block)


def write_page() -> None:
    """Replaces the results in docs/performance.md and draws the figure."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{render()}\n{END}{after}", encoding="utf-8")
    if report := read_result(CURVES[0]):
        FIGURE.write_text(curves_svg(report["points"]), encoding="utf-8")

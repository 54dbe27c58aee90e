"""Results: their files, their tables, and docs/performance.md, whose figures only this module writes."""

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
"""Results that the page shows, where they are there."""
CURVES = ("curves-mid-cpu", "curves-full-cuda")
PHASES = ("vision", "prefill", "decode", "store", "waiting")


def write_result(name: str, report: dict[str, Any]) -> None:
    """One result as JSON."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def read_result(name: str) -> dict[str, Any] | None:
    """A result that was written, if it was."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def ratio(case: dict[str, Any], procedure: str = "midsight") -> float:
    """How many times faster than the original."""
    return case["original"]["seconds"] / case[procedure]["seconds"]


def table(report: dict[str, Any]) -> list[str]:
    """Speed and memory, a row a case."""
    lines = [
        f"| {report['size']}, {report['device']} | samples per second: original | plain batches | midsight | "
        "plain batches, ratio | midsight, ratio | aimed at | peak memory, original | plain batches | midsight |",
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
    """Where midsight's time goes, a row a case."""
    lines = [
        f"| {report['size']}, {report['device']} | samples | batch | "
        + " | ".join(PHASES)
        + " | vision, of the peak | prefill, of the peak |",
        "| --- |" + " ---: |" * (len(PHASES) + 4),
    ]
    for case in report["cases"]:
        ours = case["midsight"]
        cells = [f"{100 * ours['phases'][name]:.0f} %" for name in PHASES]
        cells += [f"{100 * ours['of_peak'][name]:.0f} %" for name in ("vision", "prefill")]
        lines.append(f"| {case['name']} | {case['samples']} | {case['batch_size']} | " + " | ".join(cells) + " |")
    return lines


def aims(report: dict[str, Any]) -> list[str]:
    """The targets that are not ratios, each beside what was reached."""
    lines = []
    for case in report["cases"]:
        ours, original = case["midsight"], case["original"]
        if report["size"] == "demo":
            outside = ours["phases"]["store"] + ours["phases"]["waiting"]
            lines.append(f"* {case['name']}: {100 * outside:.0f} % outside the model (aimed at: under 15 %).")
        elif case["batch_size"] == 8:
            more = (ours["peak_bytes"] - original["peak_bytes"]) / 1e9
            lines.append(
                f"* {case['name']}: in batches of 8 {more:+.2f} GB of memory at the peak against the original's single "
                "samples (aimed at: at most +1 GB)."
            )
    return lines


def machine_line(report: dict[str, Any]) -> str:
    """What was run where."""
    ran = report["cases"][0]["midsight"]
    machine = ran["machine"]
    peak = max(case["midsight"]["peak_flops"] for case in report["cases"])
    return (
        f"`{report['command']}` on {report['date']}: {machine['processor']}, {machine['threads']} threads of "
        f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB, torch {machine['torch']}; matrix products at "
        f"{peak / 1e9:,.0f} GFLOP/s at best."
    )


def curve_table(report: dict[str, Any]) -> list[str]:
    """The points of the figure."""
    lines = ["| seconds per question | midsight | original |", "| --- | ---: | ---: |"]
    places = dict.fromkeys((point["curve"], point["x"]) for point in report["points"])
    for curve, x in places:
        at = {p["procedure"]: p["seconds"] for p in report["points"] if (p["curve"], p["x"]) == (curve, x)}
        original = f"{at['original']:.3f}" if "original" in at else ""
        lines.append(f"| {curve}: {x} | {at['midsight']:.3f} | {original} |")
    return lines


def render() -> str:
    """All results that are there, one after the other."""
    blocks: list[list[str]] = []
    for name in ORDER:
        if report := read_result(name):
            blocks += [[machine_line(report)], table(report), aims(report), phase_table(report)]
    for name in CURVES:
        if report := read_result(name):
            blocks.append([f"`{report['command']}` on {report['date']}:"])
            if name == CURVES[0]:
                blocks.append([f"![Cost per question]({FIGURE.name})"])
            blocks.append(curve_table(report))
    return "\n\n".join("\n".join(block) for block in blocks if block)


def write_page() -> None:
    """Puts the results into docs/performance.md, where the former ones were, and draws the figure."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{render()}\n{END}{after}", encoding="utf-8")
    if report := read_result(CURVES[0]):
        FIGURE.write_text(curves_svg(report["points"]), encoding="utf-8")

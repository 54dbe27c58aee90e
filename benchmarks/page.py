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
SWEEPS = ("sweep-mid-cpu", "sweep-demo-cpu", "sweep-full-cuda")
CURVES = ("curves-mid-cpu", "curves-full-cuda")
SHARES = ("vision", "prefill", "decode")
PHASES = ("vision", "prefill", "decode", "store", "waiting")


def write_result(name: str, report: dict[str, Any]) -> None:
    """Writes one result as JSON."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def read_result(name: str) -> dict[str, Any] | None:
    """Reads a result; None if there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def replace_cases(name: str, report: dict[str, Any]) -> None:
    """Writes a result; cases of an earlier one that the new one does not have stay."""
    names = {case["name"] for case in report["cases"]}
    earlier = read_result(name) or {"cases": []}
    kept = [case for case in earlier["cases"] if case["name"] not in names]
    write_result(name, {**report, "cases": [*kept, *report["cases"]]})


def ratio_of(original: dict[str, Any], original_samples: int, other: dict[str, Any], other_samples: int) -> float:
    """Speed of a procedure divided by the original's."""
    return original["seconds"] / original_samples / (other["seconds"] / other_samples)


def table(report: dict[str, Any]) -> list[str]:
    """Table of speed and memory, one row per case."""
    lines = [
        f"| {report['size']}, {report['device']} | samples per second: original | plain batches | midsight | "
        "plain batches, ratio | midsight, ratio | target | peak memory, original | plain batches | midsight |",
        "| --- |" + " ---: |" * 9,
    ]
    for case in report["cases"]:
        original, batches, midsight = (case[name] for name in ("original", "batches", "midsight"))
        few, many = case["samples_of_others"], case["samples"]
        cells = [f"{few / original['seconds']:.3g}", f"{few / batches['seconds']:.3g}"]
        cells += [f"{many / midsight['seconds']:.3g}", f"{ratio_of(original, few, batches, few):.1f} x"]
        cells += [describe_ratios(case["ratios"]), f"{case['target']:.1f} x" if case["target"] else ""]
        cells += [f"{one['peak_bytes'] / 1e9:.2f} GB" for one in (original, batches, midsight)]
        lines.append(f"| {case['name']} | " + " | ".join(cells) + " |")
    return lines


def describe_ratios(ratios: list[float]) -> str:
    """The median of several runs, with the smallest and the largest."""
    ordered = sorted(ratios)
    spread = f" ({ordered[0]:.1f} to {ordered[-1]:.1f})" if len(ordered) > 1 else " (one run)"
    return f"**{ordered[len(ordered) // 2]:.1f} x**{spread}"


def phase_table(report: dict[str, Any]) -> list[str]:
    """Table of midsight's time by phase, one row per case."""
    lines = [
        f"| {report['size']}, {report['device']} | samples | calls | "
        + " | ".join(PHASES)
        + " | "
        + " | ".join(f"{name}, share of peak" for name in SHARES)
        + " | fastest matrix product, GFLOP/s |",
        "| --- |" + " ---: |" * (len(PHASES) + len(SHARES) + 3),
    ]
    for case in report["cases"]:
        midsight = case["midsight"]
        cells = [f"{100 * midsight['phases'][name]:.0f} %" for name in PHASES]
        shares = midsight["peak_shares"]
        cells += [f"{100 * shares[name]:.0f} %" if name in shares else "" for name in SHARES]
        cells.append(f"{midsight['peak_flops'] / 1e9:,.0f}")
        sizes = ", ".join(str(samples) for samples, *_ in midsight["calls"])
        lines.append(f"| {case['name']} | {case['samples']} | {sizes} | " + " | ".join(cells) + " |")
    return lines


def targets(report: dict[str, Any]) -> list[str]:
    """The targets that are not ratios, each with the measured value."""
    if report["size"] != "demo":
        return []
    outside = {
        case["name"]: sum(case["midsight"]["phases"][name] for name in ("store", "waiting")) for case in report["cases"]
    }
    return [f"* {name}: {100 * share:.0f} % outside the model (target: under 10 %)." for name, share in outside.items()]


def sweep_table(report: dict[str, Any]) -> list[str]:
    """Table of midsight's speed by batch size, one row per case."""
    sizes = list(report["cases"][0]["speeds"])
    lines = [
        f"| {report['size']}, {report['device']}: samples per second | samples of auto | "
        + " | ".join(sizes)
        + " | auto, later, share of the best |",
        "| --- |" + " ---: |" * (len(sizes) + 2),
    ]
    for case in report["cases"]:
        speeds = case["speeds"]
        best = max(speed for name, speed in speeds.items() if not name.startswith("auto"))
        cells = [*(f"{speeds[name]:.3g}" for name in sizes), f"{100 * speeds['auto, later'] / best:.0f} %"]
        lines.append(f"| {case['name']} | {case['samples']} | " + " | ".join(cells) + " |")
    return lines


def describe_machine(report: dict[str, Any]) -> str:
    """The command, its date and the machine, in one sentence."""
    machine = report["cases"][0]["midsight"]["machine"]
    return (
        f"`{report['command']}` on {report['date']}: {machine['processor']}, {machine['threads']} threads of "
        f"{machine['cores']} cores, {machine['memory_gb']:.0f} GB, torch {machine['torch']}."
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
    for name in SWEEPS:
        if report := read_result(name):
            blocks += [[f"`{report['command']}` on {report['date']}:"], sweep_table(report)]
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

"""The GPU report as Markdown."""

from __future__ import annotations

from typing import Any


def render(report: dict[str, Any]) -> str:
    """The whole report."""
    sections = report["sections"]
    named = report["machine"]
    lines = [
        f"# midsight on {named['processor']}",
        "",
        f"Size {report['size']}: {report['parameters'] / 1e9:.2f} billion random weights in {report['dtype']}, made in "
        f"{report['seconds_to_make_the_model']:.0f} s; torch {named['torch']}. Fastest matrix product "
        f"{report['peak_flops'] / 1e12:.3g} TFLOP/s, fastest copy {report['bandwidth'] / 1e9:.3g} GB/s.",
        "",
    ]
    lines += [f"Left out, {name}: {one['left_out']}\n" for name, one in sections.items() if "left_out" in one]
    done = {name: one for name, one in sections.items() if "left_out" not in one}
    if "proof" in done:
        lines += proof_lines(done["proof"]["checks"])
    if "parity" in done:
        lines += [
            "Largest relative error of the query token's states against the full forward: "
            f"{done['parity']['midsight']:.2g}; transformers' own, in other batch shapes: "
            f"{done['parity']['transformers in other batch shapes']:.2g}.",
            "",
        ]
    lines += speed_lines({name: one for name, one in done.items() if "midsight_per_second" in one})
    if "out of memory" in done:
        one = done["out of memory"]
        sizes = ", ".join(map(str, one["calls"]))
        lines += [f"Out of memory: calls of {sizes}; {len(one['failed'])} of {one['samples']} samples failed.", ""]
    return "\n".join(lines)


def proof_lines(checks: list[dict[str, Any]]) -> list[str]:
    """How many checks passed, and those that did not."""
    broken = [check for check in checks if not check["passed"]]
    lines = [f"`check --run`: {len(checks) - len(broken)} of {len(checks)} checks passed."]
    lines += [
        f"* {check['name']}: {check['figure']:.2g}, limit {check['limit']:.2g} {check['error']}" for check in broken
    ]
    return [*lines, ""]


def speed_lines(cases: dict[str, dict[str, Any]]) -> list[str]:
    """Speeds, shares of the peak, and decoding against the limit of the memory."""
    if not cases:
        return []
    lines = [
        "| case | original, samples per second | midsight | ratio | calls | vision, share of peak | prefill | decode | "
        "decoded tokens per second | limit of the memory |",
        "| --- |" + " ---: |" * 9,
    ]
    for name, case in cases.items():
        original, ours = case["original_per_second"], case["midsight_per_second"]
        shares = [f"{100 * case['peak_shares'].get(phase, 0):.1f} %" for phase in ("vision", "prefill", "decode")]
        cells = [f"{original:.3g}", f"{ours:.3g}", f"{ours / original:.1f} x"]
        cells += [", ".join(str(samples) for samples, *_ in case["calls"]), *shares]
        cells += [f"{case['decode_tokens_per_second']:,.0f}", f"{case['decode_limit_tokens_per_second']:,.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]

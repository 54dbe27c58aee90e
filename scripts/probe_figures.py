"""Measures the figures in docs/probing.md on made-up runs, at full counts, and writes them there.

Run from the repository root: OMP_NUM_THREADS=1 .venv/bin/python scripts/probe_figures.py
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np

from support.null_runs import cross_validated_coverage, held_out_coverage, leak, null_runs

PAGE = Path(__file__).parents[1] / "docs" / "probing.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
NULL_RUNS, PERMUTATIONS, COVERAGE_RUNS, LEAK_RUNS = 1000, 199, 400, 100


def measure() -> list[str]:
    """The lines between the marks."""
    null = null_runs(NULL_RUNS, PERMUTATIONS)
    grouped, torn = leak(LEAK_RUNS)
    lines = [
        f"| on {NULL_RUNS} null runs of 80 images, 4 columns, {PERMUTATIONS} permutations | measured | nominal |",
        "| --- | --- | --- |",
        f"| family-wise p of the best column at most .05 | {np.mean(null.family <= 0.05):.3f} | .050 |",
        f"| family-wise p at most .10 | {np.mean(null.family <= 0.1):.3f} | .100 |",
        f"| p of the chosen column at most .05 | {np.mean(null.chosen <= 0.05):.3f} | .050 |",
        f"| mean AUROC of the column chosen in inner folds | {null.aurocs.mean():.3f} | .500 |",
        f"| mean AUROC of the column that is best on the test folds | {null.best.mean():.3f} | .500 |",
        f"| mean AUROC, image vectors, images kept together ({LEAK_RUNS} runs) | {grouped:.3f} | .500 |",
        f"| the same, folds that ignore images | {torn:.3f} | .500 |",
        "",
        f"| 95 % intervals, {COVERAGE_RUNS} runs | AUROC | spread / error | plain covers | times 1.35 covers |",
        "| --- | --- | --- | --- | --- |",
    ]
    for signal in (0.0, 0.5, 1.0, 2.0):
        found = cross_validated_coverage(COVERAGE_RUNS, signal)
        lines.append(
            f"| cross-validated, 100 images | {found.truth:.3f} | {found.spread:.2f} | {found.plain:.3f} | "
            f"{found.widened:.3f} |"
        )
    for signal in (0.0, 1.0, 2.0):
        found = held_out_coverage(COVERAGE_RUNS, signal)
        lines.append(
            f"| held-out 30 % of 200 images | {found.truth:.3f} | {found.spread:.2f} | {found.plain:.3f} | - |"
        )
    return lines


def main() -> None:
    """Replaces the figures of the page."""
    started = time.process_time()
    lines = measure()
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text("\n".join([f"{before}{BEGIN}", *lines, after]), encoding="utf-8")
    print("\n".join(lines))
    print(f"{time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()

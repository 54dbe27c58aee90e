"""Samples per second of the original procedure, of plain batches, and of midsight, in one run on one machine.

Usage: make bench [SIZE=demo|mid|full] [DEVICE=cpu|cuda], or
.venv/bin/python -m benchmarks [--size SIZE]... [--device DEVICE] [--case NAME] [--sweep] [--curves]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from benchmarks import page
from benchmarks.cases import CASES, Case, Size
from benchmarks.curves import measure_curves
from benchmarks.data import Row, cross_section
from benchmarks.measure import Measured, Procedure, Task
from benchmarks.sweep import measure_sweep

RUNS = 3


def main() -> None:
    """Times every case, prints the tables, and writes them to benchmarks/results/ and docs/performance.md."""
    chosen = make_parser().parse_args()
    is_trial = bool(chosen.samples or chosen.runs != RUNS)
    for size in chosen.size or ["demo", "mid"]:
        if chosen.curves:
            if size != "demo":
                points = measure_curves(size, chosen.device, measure_in_process)
                page.write_result(f"curves-{size}-{chosen.device}", {**heading(chosen, size), "points": points})
            continue
        cases = [case for case in CASES if case.size == size and chosen.case in case.name]
        if chosen.sweep:
            found = [sweep_case(case, chosen) for case in cases]
            report, name = {**heading(chosen, size), "cases": found}, f"sweep-{size}-{chosen.device}"
            print("\n".join(page.sweep_table(report)), flush=True)
        else:
            report = {**heading(chosen, size), "cases": [time_case(case, chosen) for case in cases]}
            name = f"{size}-{chosen.device}"
            print("\n".join(["", *page.table(report), "", *page.targets(report), "", *page.phase_table(report), ""]))
        if not is_trial:
            page.replace_cases(name, report)
    if not is_trial:
        page.write_page()


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", action="append", choices=get_args(Size), help="default: demo and mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--case", default="", help="run only cases whose name contains this, and keep the others' results"
    )
    parser.add_argument("--samples", type=int, help="number of samples in each case; writes nothing")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"other numbers of runs than {RUNS} write nothing")
    parser.add_argument("--sweep", action="store_true", help="compare the default batch size with fixed ones")
    parser.add_argument("--curves", action="store_true", help="measure cost against questions per image and new tokens")
    return parser


def heading(chosen: argparse.Namespace, size: str) -> dict[str, Any]:
    """The first fields of a result: command, date, size and device."""
    options = [f"SIZE={size}", *([f"DEVICE={chosen.device}"] if chosen.device != "cpu" else [])]
    command = f"make bench {' '.join(options)}"
    for option in ("sweep", "curves"):
        if vars(chosen)[option]:
            command = f".venv/bin/python -m benchmarks --{option} --size {size} --device {chosen.device}"
    return {"command": command, "date": f"{datetime.now(UTC):%Y-%m-%d}", "size": size, "device": chosen.device}


def time_case(case: Case, chosen: argparse.Namespace) -> dict[str, Any]:
    """Times the procedures on one case, each time in a new process: plain batches once, the two others in turns.

    The run whose ratio is the median stands for the case.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = case.rows(Path(folder), chosen.samples or case.count, case.new_tokens)
        few = cross_section(rows, min(case.count_of_others, len(rows)))
        batches = time_procedure(case, chosen, "batches", few)
        runs = [
            (time_procedure(case, chosen, "original", few), time_procedure(case, chosen, "midsight", rows))
            for _ in range(chosen.runs)
        ]
    runs.sort(key=lambda run: page.ratio_of(run[0], len(few), run[1], len(rows)))
    original, midsight = runs[len(runs) // 2]
    return {
        "name": case.name,
        "samples": len(rows),
        "samples_of_others": len(few),
        "batch_size": case.batch_size,
        "target": case.target,
        "mean_new_tokens": sum(row.new_tokens for row in rows) / len(rows),
        "ratios": [page.ratio_of(run[0], len(few), run[1], len(rows)) for run in runs],
        "original": original,
        "batches": batches,
        "midsight": midsight,
    }


def time_procedure(case: Case, chosen: argparse.Namespace, procedure: Procedure, rows: Sequence[Row]) -> dict[str, Any]:
    """Measures one procedure on the rows; midsight has its default batch size."""
    batch_size = "auto" if procedure == "midsight" else case.batch_size
    took = measure_in_process(Task(procedure, case.size, chosen.device, list(rows), batch_size))
    print(f"{case.name}: {procedure} {took.seconds:.1f} s, {took.cpu_seconds:.1f} s of CPU time", flush=True)
    return asdict(took)


def sweep_case(case: Case, chosen: argparse.Namespace) -> dict[str, Any]:
    """Midsight's speed on one case, by batch size."""
    with tempfile.TemporaryDirectory() as folder:
        count = chosen.samples or case.sweep_count or case.count
        rows = case.rows(Path(folder), count, case.new_tokens)
        return {"name": case.name, **measure_sweep(case.size, chosen.device, rows, measure_in_process)}


def measure_in_process(task: Task) -> Measured:
    """Measures the task in a new process; raises CalledProcessError if that process fails."""
    with tempfile.TemporaryDirectory() as folder:
        task_path, result_path = Path(folder) / "task.json", Path(folder) / "result.json"
        task_path.write_text(json.dumps(asdict(task)))
        command = [sys.executable, "-m", "benchmarks.measure", str(task_path), str(result_path)]
        subprocess.run(command, check=True)  # noqa: S603
        return Measured(**json.loads(result_path.read_text()))


if __name__ == "__main__":
    main()

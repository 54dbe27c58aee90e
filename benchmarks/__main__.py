"""Samples per second of the original procedure, of plain batches, and of midsight, in one run on one machine.

Usage: make bench [SIZE=demo|mid|full] [DEVICE=cpu|cuda], or
.venv/bin/python -m benchmarks [--size SIZE]... [--device DEVICE] [--batch-size N|auto] [--curves]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from benchmarks import page
from benchmarks.cases import CASES, Case, Size
from benchmarks.curves import measure_curves
from benchmarks.measure import PROCEDURES, Measured, Task


def main() -> None:
    """Times every case, prints the tables, and writes them to benchmarks/results/ and docs/performance.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", action="append", choices=get_args(Size), help="default: demo and mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", help="for midsight: a number or auto; default: the case's own")
    parser.add_argument("--case", default="", help="run only cases whose name contains this; writes nothing")
    parser.add_argument("--samples", type=int, help="number of samples in each case; writes nothing")
    parser.add_argument("--curves", action="store_true", help="measure cost against questions per image and new tokens")
    chosen = parser.parse_args()
    is_trial = bool(chosen.case or chosen.samples)
    for size in chosen.size or ["demo", "mid"]:
        if chosen.curves:
            if size == "demo":
                continue
            report = {**heading(chosen, size), "points": measure_curves(size, chosen.device, measure_in_process)}
            page.write_result(f"curves-{size}-{chosen.device}", report)
            continue
        cases = [
            case
            for case in CASES
            if case.size == size and chosen.case in case.name and (chosen.case or case.by_default)
        ]
        report = {**heading(chosen, size), "cases": [time_case(case, chosen) for case in cases]}
        print(
            "\n".join(["", *page.table(report), "", *page.targets(report), "", *page.phase_table(report), ""]),
            flush=True,
        )
        if not is_trial:
            page.write_result(f"{size}-{chosen.device}", report)
    if not is_trial:
        page.write_page()


def heading(chosen: argparse.Namespace, size: str) -> dict[str, Any]:
    """The first fields of a result: command, date, size and device."""
    options = [f"SIZE={size}", *([f"DEVICE={chosen.device}"] if chosen.device != "cpu" else [])]
    command = f"make bench {' '.join(options)}"
    if chosen.curves:
        command = f".venv/bin/python -m benchmarks --curves --size {size} --device {chosen.device}"
    return {"command": command, "date": f"{datetime.now(UTC):%Y-%m-%d}", "size": size, "device": chosen.device}


def time_case(case: Case, chosen: argparse.Namespace) -> dict[str, Any]:
    """Runs the three procedures on one case, each in its own process, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        rows = case.rows(Path(folder), chosen.samples or case.count, case.new_tokens)
        measured: dict[str, Any] = {}
        for procedure in PROCEDURES:
            own_size = chosen.batch_size if procedure == "midsight" else None
            batch_size = int(own_size) if own_size and own_size.isdecimal() else own_size or case.batch_size
            took = measure_in_process(Task(procedure, case.size, chosen.device, rows, batch_size))
            measured[procedure] = asdict(took)
            print(f"{case.name}: {procedure} {took.seconds:.1f} s, {took.cpu_seconds:.1f} s of CPU time", flush=True)
    return {
        "name": case.name,
        "samples": len(rows),
        "batch_size": batch_size,
        "target": case.target,
        "mean_new_tokens": sum(row.new_tokens for row in rows) / len(rows),
        **measured,
    }


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

"""Measures what docs/scaling.md says: the cost of Ray, and of runs of many parts.

Run from the repository root: .venv/bin/python scripts/scaling_figures.py ray|parts [PARTS ...]. Times are CPU time of
all processes, because machines have other work to do; they are looked at ten times a second, so each process may have
used a little more.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from midsight import open_run
from midsight.store import RunWriter
from midsight.testing import write_phi4_multimodal
from support.made_up import make_record, make_spec
from support.pictures import encoded, picture

SAMPLES, SAMPLES_OF_AN_IMAGE = 400, 4


def cpu_seconds(command: list[str]) -> float:
    """CPU time of a command with all processes below it; ends this one if the command fails."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    used: dict[tuple[int, float], float] = {}
    while process.poll() is None:
        for one in [process, *process.children(recursive=True)]:
            try:
                times = one.cpu_times()
                used[one.pid, one.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return sum(used.values())


def compare(run: Path, whole: Path) -> str:
    """How far a run is from that of one process."""
    one, other = open_run(run), open_run(whole)
    columns = ["sample_id", "answer"]  # log-probabilities are rounded differently in other calls
    if not one.table().select(columns).equals(other.table().select(columns)):
        sys.exit(f"{run} has other rows than {whole}")
    largest = 0.0
    for name in other.vector_columns:
        difference = np.linalg.norm(one.matrix(name) - other.matrix(name), axis=1)
        largest = max(largest, float((difference / np.linalg.norm(other.matrix(name), axis=1)).max()))
    return f"the same {len(one)} rows, largest relative error {largest:.1e}"


def measure_ray(folder: Path) -> None:
    """The same samples by one process, by four shards in turn, and on Ray."""
    checkpoint, data = write_phi4_multimodal(folder / "checkpoint"), folder / "data.jsonl"
    rows = [{"image": f"{i // SAMPLES_OF_AN_IMAGE}.png", "question": f"What is {i}?"} for i in range(SAMPLES)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(SAMPLES // SAMPLES_OF_AN_IMAGE):
        (folder / f"{i}.png").write_bytes(encoded(picture((64, 64), i)))
    program = [str(Path(sys.executable).with_name("midsight")), "extract", str(data), "--model", str(checkpoint)]
    program += ["--device", "cpu", "--max-new-tokens", "4", "--out"]
    os.environ["OMP_NUM_THREADS"] = "1"
    whole = folder / "whole"
    print(f"one process: {cpu_seconds([*program, str(whole)]):.1f} s", flush=True)
    size = sum(file.stat().st_size for file in whole.glob("parts/*"))
    raw = 4 * sum(open_run(whole).matrix(name).shape[1] for name in open_run(whole).vector_columns)
    print(f"{size / SAMPLES:,.0f} bytes per sample, vectors {raw:,} before compression", flush=True)
    for workers in (1, 2):
        run = folder / f"ray{workers}"
        used = cpu_seconds([*program, str(run), "--ray", "--workers", str(workers)])
        print(f"Ray, {workers} workers: {used:.1f} s, {compare(run, whole)}", flush=True)
    shards = sum(cpu_seconds([*program, str(folder / "shards"), "--shard", f"{n}/4"]) for n in range(4))
    print(f"four shards in turn: {shards:.1f} s, {compare(folder / 'shards', whole)}", flush=True)


def measure_parts(folder: Path, counts: list[int]) -> None:
    """Runs of many orders of one row each: starting one more order, opening the run, reading one column."""
    for count in counts:
        run, spec, began = folder / f"{count}", make_spec(), time.process_time()
        for number in range(count):
            with RunWriter(run, spec, shard=(number, count + 1), reads_other_shards=False) as writer:
                writer.add(make_record(number, spec))
        made = time.process_time() - began
        began = time.process_time()
        with RunWriter(run, spec, shard=(count, count + 1), reads_other_shards=False):
            started = time.process_time() - began
        began = time.process_time()
        opened = open_run(run)
        opening = time.process_time() - began
        began = time.process_time()
        opened.matrix(opened.vector_columns[0])
        reading = time.process_time() - began
        print(
            f"{count:,} parts: an order starts in {1000 * started:.0f} ms, the run opens in {opening:.2f} s, one "
            f"column is read in {reading:.2f} s; {1000 * made / count:.1f} ms for each order and commit",
            flush=True,
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        if sys.argv[1:2] == ["ray"]:
            measure_ray(Path(scratch))
        else:
            measure_parts(Path(scratch), [int(number) for number in sys.argv[2:]] or [10, 100, 1_000])

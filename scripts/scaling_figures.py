"""Measures what docs/scaling.md says: the cost of Ray, of many orders, and of runs of many parts.

Run from the repository root: .venv/bin/python scripts/scaling_figures.py ray [SAMPLES ...], or orders [ORDERS ...], or
parts [PARTS ...]. CPU time is that of all processes, because machines have other work to do; they are looked at ten
times a second, so each process may have used a little more. The load average says how far wall time can be believed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from midsight import Ray, open_run
from midsight.extraction import on_ray
from midsight.extraction.orders import Call, Order
from midsight.extraction.ray_cluster import connected
from midsight.store import RunSpec, RunWriter
from midsight.store.commits import Commit, part_path, write_commit
from midsight.store.parts import digest_part, encode_part
from midsight.store.schema import records_to_table
from midsight.store.spec import write_spec
from midsight.testing import write_phi4_multimodal
from support.made_up import make_record, make_spec
from support.pictures import encoded, picture

SAMPLES_OF_AN_IMAGE = 4


@dataclass(frozen=True)
class Cost:
    """What a command with all processes below it takes."""

    cpu_s: float
    wall_s: float

    def __str__(self) -> str:
        return f"{self.cpu_s:.0f} s of CPU time, {self.wall_s:.0f} s of wall time at a load of {os.getloadavg()[0]:.1f}"

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu_s + other.cpu_s, self.wall_s + other.wall_s)


def cost_of(command: list[str]) -> Cost:
    """What a command takes; ends this process if it fails."""
    began = time.monotonic()
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
    return Cost(sum(used.values()), time.monotonic() - began)


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


def measure_ray(folder: Path, samples: int) -> None:
    """The same samples by one process, by four shards in turn, and on Ray."""
    folder.mkdir()
    checkpoint, data = write_phi4_multimodal(folder / "checkpoint"), folder / "data.jsonl"
    rows = [{"image": f"{i // SAMPLES_OF_AN_IMAGE}.png", "question": f"What is {i}?"} for i in range(samples)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(-(-samples // SAMPLES_OF_AN_IMAGE)):
        (folder / f"{i}.png").write_bytes(encoded(picture((64, 64), i)))
    program = [str(Path(sys.executable).with_name("midsight")), "extract", str(data), "--model", str(checkpoint)]
    program += ["--device", "cpu", "--max-new-tokens", "4", "--out"]
    os.environ["OMP_NUM_THREADS"] = "1"
    whole = folder / "whole"
    print(f"{samples:,} samples, one process: {cost_of([*program, str(whole)])}", flush=True)
    size = sum(file.stat().st_size for file in whole.glob("parts/*"))
    raw = 4 * sum(open_run(whole).matrix(name).shape[1] for name in open_run(whole).vector_columns)
    print(f"{size / samples:,.0f} bytes per sample, vectors {raw:,} before compression", flush=True)
    for workers in (1, 2):
        run = folder / f"ray{workers}"
        cost = cost_of([*program, str(run), "--ray", "--workers", str(workers)])
        print(f"Ray, {workers} workers: {cost}; {compare(run, whole)}", flush=True)
    shards = [cost_of([*program, str(folder / "shards"), "--shard", f"{n}/4"]) for n in range(4)]
    print(f"four shards in turn: {sum(shards, Cost(0, 0))}; {compare(folder / 'shards', whole)}", flush=True)


class Idle:
    """A worker that has nothing to do."""

    def __init__(self, *_: object) -> None:
        """Loads nothing."""

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """The results of orders that were done before."""
        return {"result": ['{"node": ""}' for _ in batch["order"]]}


def measure_orders(counts: list[int]) -> None:
    """Orders of 400 samples that take no time, by two workers: what handing them out costs."""
    on_ray.Worker = Idle  # type: ignore[assignment]
    call = Call("data.jsonl", {}, {}, "auto", 60.0, None)
    with connected(Ray(workers=2)) as pool:
        for count in counts:
            orders = [Order((n, count), tuple(range(400 * n, 400 * n + 400)), ()) for n in range(count)]
            began, cpu = time.monotonic(), time.process_time()
            first = 0.0
            for _ in on_ray.results(orders, call, pool):
                first = first or time.monotonic() - began
            wall, cpu = time.monotonic() - began, time.process_time() - cpu
            print(
                f"{count:,} orders: the first is done after {first:.1f} s, all after {wall:.1f} s, with {cpu:.1f} s of "
                f"the command's CPU time; {psutil.Process().memory_info().rss / 1e6:,.0f} MB of memory; load "
                f"{os.getloadavg()[0]:.1f}",
                flush=True,
            )


def write_orders(run: Path, spec: RunSpec, count: int) -> None:
    """A run of `count` orders of one row each, without the writer, which would look for the locks of all others."""
    (run / "parts").mkdir(parents=True)
    write_spec(run, spec)
    with patch.object(os, "fsync"):
        for number in range(count):
            part = encode_part(records_to_table([make_record(number, spec)], spec.columns))
            commit = Commit((number, count + 1), 0, digest_part(part), ())
            part_path(run, commit.shard, 0).write_bytes(part.to_pybytes())
            write_commit(run, commit, spec.run_id)


def measure_parts(folder: Path, counts: list[int]) -> None:
    """Runs of many orders of one row each: starting one more order, opening the run, reading one column."""
    for count in counts:
        run, spec = folder / f"{count}", make_spec()
        write_orders(run, spec, count)
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
            f"column is read in {reading:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    counts = [int(number) for number in sys.argv[2:]]
    with tempfile.TemporaryDirectory() as scratch:
        if sys.argv[1:2] == ["ray"]:
            for samples in counts or [400, 1_600]:
                measure_ray(Path(scratch) / f"{samples}", samples)
        elif sys.argv[1:2] == ["orders"]:
            measure_orders(counts or [100, 1_000])
        else:
            measure_parts(Path(scratch), counts or [10, 100, 1_000])

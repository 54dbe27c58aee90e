"""Measures time and memory of `midsight probe` on a made-up run, for docs/probing.md.

Run from the repository root, with nothing else running: .venv/bin/python scripts/probe_speed.py [SAMPLES COLUMNS].
100,000 samples of 67 columns take 41 GB in the folder of temporary files.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from midsight import open_run
from midsight.store import RunWriter
from support.planted import planted_records, planted_spec

WIDTH, QUESTIONS, PIECE = 3072, 10, 1000


def make_run(run: Path, samples: int, columns: int) -> None:
    """A labelled run of yes/no questions, ten on each image, made piece by piece; vectors in float16."""
    layers = columns - 1
    shape = {"layers": layers, "width": WIDTH, "layer": layers - 1}
    spec = planted_spec(**shape, store_dtype="float16")
    with RunWriter(run, spec) as writer:
        for first in range(0, samples, PIECE):
            images = min(PIECE, samples - first) // QUESTIONS
            for record in planted_records(spec, first, seed=first, images=images, questions=QUESTIONS, **shape):
                writer.add(record)
    open_run(run).label(judge="yes_no")


def main() -> None:
    """Makes a run in a process of its own, whose memory does not count, and probes it by the command."""
    samples, columns = (int(number) for number in sys.argv[1:3]) if sys.argv[1:] else (20_000, 11)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        maker = multiprocessing.get_context("spawn").Process(target=make_run, args=(run, samples, columns))
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit(f"making the run ended with {maker.exitcode}")
        started = time.monotonic()
        command = [str(Path(sys.executable).with_name("midsight")), "probe", str(run)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
        _, status, used = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} ended with status {status}")
        print(
            f"{samples:,} samples x {columns} columns of {WIDTH}: {time.monotonic() - started:.0f} s, "
            f"{used.ru_utime + used.ru_stime:.0f} s of CPU time, {used.ru_maxrss / 1e6:.2f} GB"
        )


if __name__ == "__main__":
    main()

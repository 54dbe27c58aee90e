"""Measures time and memory of `midsight probe` on a made-up run, for docs/probing.md.

Run from the repository root, with nothing else running: .venv/bin/python scripts/probe_speed.py [SAMPLES COLUMNS]
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from midsight import open_run
from support.planted import write_planted

WIDTH, QUESTIONS = 3072, 10


def main() -> None:
    """Makes a run of yes/no questions, ten on each image, labels it, and probes it by the command."""
    samples, columns = (int(number) for number in sys.argv[1:3]) if sys.argv[1:] else (20_000, 11)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_planted(run, images=samples // QUESTIONS, questions=QUESTIONS, layers=columns - 1, width=WIDTH)
        open_run(run).label(judge="yes_no")
        started = time.monotonic()
        command = [str(Path(sys.executable).with_name("midsight")), "probe", str(run)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{samples:,} samples x {columns} columns of {WIDTH}: {time.monotonic() - started:.0f} s, "
            f"{used.ru_utime + used.ru_stime:.0f} s of CPU time, {used.ru_maxrss / 1e6:.2f} GB"
        )


if __name__ == "__main__":
    main()

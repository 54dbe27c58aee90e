"""`make faults`: runs experiments at their full count and writes the results to docs/reliability.md."""

import argparse
import sys
import time

from faults.catalogue import EXPERIMENTS
from faults.disk import GROUP as DISKS
from faults.disk import can_mount
from faults.page import render, write_page

GROUPS = tuple(dict.fromkeys(experiment.group for experiment in EXPERIMENTS))


def main() -> int:
    """Runs the experiments of all groups, or of those named; returns 1 if an attempt failed, which the page shows."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--only", action="append", choices=GROUPS, help="a group, repeated for several")
    asked = parser.parse_args()
    groups = asked.only or GROUPS
    if DISKS in groups and not can_mount():
        print(f"{DISKS} needs a machine on which any user may mount a file system; this one does not allow it.")
        return 1
    return max([run_group(group, asked.seed) for group in groups])


def run_group(group: str, seed: int) -> int:
    """Runs the experiments of a group and writes its table; returns 1 if an attempt failed."""
    began = time.monotonic()
    results = []
    for experiment in EXPERIMENTS:
        if experiment.group != group:
            continue
        started = time.monotonic()
        outcome = experiment.run(experiment.full, seed)
        results.append((experiment, outcome))
        print(
            f"{group}: {experiment.name}: {outcome.passed:,} of {outcome.tried:,} passed ({outcome.note}), "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    write_page(group, render(group, results, seed, (time.monotonic() - began) / 60), GROUPS)
    return 0 if all(outcome.passed == outcome.tried for _, outcome in results) else 1


if __name__ == "__main__":
    sys.exit(main())

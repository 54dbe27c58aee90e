"""`make faults`: runs every experiment at its full count and writes the results to docs/reliability.md."""

import sys
import time

from faults.catalogue import EXPERIMENTS
from faults.disk import can_mount
from faults.page import render, write_page


def main() -> int:
    """Runs all experiments; returns 1 if an attempt failed, which the page shows too."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    if not can_mount():
        print("make faults needs a machine on which any user may mount a file system; this one does not allow it.")
        return 1
    began = time.monotonic()
    results = []
    for experiment in EXPERIMENTS:
        started = time.monotonic()
        outcome = experiment.run(experiment.full, seed)
        results.append((experiment, outcome))
        seconds = time.monotonic() - started
        print(
            f"{experiment.group}: {experiment.name}: {outcome.passed:,} of {outcome.tried:,} passed ({outcome.note}), "
            f"{seconds:.0f} s",
            flush=True,
        )
    write_page(render(results, seed, (time.monotonic() - began) / 60))
    return 0 if all(outcome.passed == outcome.tried for _, outcome in results) else 1


if __name__ == "__main__":
    sys.exit(main())

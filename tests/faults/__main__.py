"""`make faults`: every experiment at its full count, and what came of it into docs/reliability.md."""

import sys
import time

from faults.catalogue import EXPERIMENTS
from faults.disk import can_mount
from faults.page import render, write_page


def main() -> int:
    """Exit code 1 where anything did not hold; the page then says so too."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    if not can_mount():
        print("This machine lets no user mount a file system of their own; make faults needs one that does.")
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

"""Every experiment at its quick count; `make faults` runs them at the full one."""

import pytest

from faults import damage, disk
from faults.catalogue import EXPERIMENTS


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(one, id=f"{one.group}: {one.name}", marks=() if one.group == damage.GROUP else pytest.mark.slow)
        for one in EXPERIMENTS
    ],
)
def test_every_attempt_passes(experiment):
    if experiment.run is disk.file_system_that_is_full and not disk.can_mount():
        pytest.skip("an unprivileged user cannot mount a file system on this machine")
    outcome = experiment.run_quickly(0)
    assert outcome.passed == outcome.tried, outcome.note
    assert outcome.tried >= 1

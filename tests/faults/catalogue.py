"""Every experiment, in the order of docs/reliability.md."""

from faults import bad_input, damage, deaths, disk, kills, scale, tampering

EXPERIMENTS = (
    *kills.EXPERIMENTS,
    *deaths.EXPERIMENTS,
    *damage.EXPERIMENTS,
    *tampering.EXPERIMENTS,
    *disk.EXPERIMENTS,
    *scale.EXPERIMENTS,
    *bad_input.EXPERIMENTS,
)

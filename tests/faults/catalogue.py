"""Every experiment, in the order of docs/reliability.md."""

from faults import bad_input, damage, deaths, disk, kills, scale

EXPERIMENTS = (
    *kills.EXPERIMENTS,
    *deaths.EXPERIMENTS,
    *damage.EXPERIMENTS,
    *disk.EXPERIMENTS,
    *scale.EXPERIMENTS,
    *bad_input.EXPERIMENTS,
)

"""Every experiment, in the order of docs/reliability.md."""

from faults import bad_input, damage, disk, kills, scale

EXPERIMENTS = (
    *kills.EXPERIMENTS,
    *damage.EXPERIMENTS,
    *disk.EXPERIMENTS,
    *scale.EXPERIMENTS,
    *bad_input.EXPERIMENTS,
)

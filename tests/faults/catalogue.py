"""Every experiment, in the order of docs/reliability.md."""

from faults import bad_input, damage, deaths, disk, held_up, in_bucket, kills, large, on_ray, scale, tampering

EXPERIMENTS = (
    *kills.EXPERIMENTS,
    *deaths.EXPERIMENTS,
    *held_up.EXPERIMENTS,
    *on_ray.EXPERIMENTS,
    *in_bucket.EXPERIMENTS,
    *damage.EXPERIMENTS,
    *tampering.EXPERIMENTS,
    *disk.EXPERIMENTS,
    *scale.EXPERIMENTS,
    *large.EXPERIMENTS,
    *bad_input.EXPERIMENTS,
)

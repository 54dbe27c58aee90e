"""The figure of docs/performance.md as SVG: two panels, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH_PX, HEIGHT_PX, MARGIN_PX, GAP_PX = 760, 320, 56, 72
COLOURS = {"midsight": "#0b6e4f", "original": "#8a8a8a"}


def curves_svg(points: Sequence[dict[str, Any]]) -> str:
    """One panel per curve; points have the keys curve, x, procedure and seconds."""
    curves = list(dict.fromkeys(point["curve"] for point in points))
    seconds = [point["seconds"] for point in points]
    ticks = [
        10.0**power for power in range(math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds))) + 1)
    ]
    panel = (WIDTH_PX - 2 * MARGIN_PX - GAP_PX * (len(curves) - 1)) / len(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, curve in enumerate(curves):
        own = [point for point in points if point["curve"] == curve]
        left = MARGIN_PX + number * (panel + GAP_PX)
        parts += draw_panel(curve, own, left, panel, ticks)
    return "\n".join([*parts, "</svg>", ""])


def draw_panel(
    curve: str, points: Sequence[dict[str, Any]], left: float, width: float, ticks: Sequence[float]
) -> list[str]:
    """One panel: grid, axes, and one line per procedure."""
    top, bottom = 40.0, HEIGHT_PX - 50.0
    values = sorted({point["x"] for point in points})

    def at_x(value: float) -> float:
        return left + width * math.log(value / values[0]) / math.log(values[-1] / values[0])

    def at_y(seconds: float) -> float:
        return bottom - (bottom - top) * math.log(seconds / ticks[0]) / math.log(ticks[-1] / ticks[0])

    parts = []
    for tick in ticks:
        y = at_y(tick)
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{left + width:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g} s</text>')
    for value in values:
        parts.append(f'<text x="{at_x(value):.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{value}</text>')
    middle = left + width / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 38:.1f}" text-anchor="middle">{curve}</text>')
    parts.append(f'<text x="{left:.1f}" y="{top - 16:.1f}">seconds per question</text>')
    for procedure, colour in COLOURS.items():
        own = sorted((point["x"], point["seconds"]) for point in points if point["procedure"] == procedure)
        if len(own) == 1:  # it does not depend on x
            own.append((values[-1], own[0][1]))
        spots = [(at_x(x), at_y(seconds)) for x, seconds in own]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        x, y = spots[-1]
        parts.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="{colour}">{procedure}</text>')
    return parts

"""Line charts as SVG whose colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 448, 14, 246
MOST_TICKS = 8

Scale = Callable[[float], float]
"""From a value to pixels."""


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    """In the legend."""
    color: int
    """Number of the colour in the style sheet."""
    points: tuple[tuple[float, float], ...]
    """x and y."""
    intervals: tuple[tuple[float, float], ...] = ()
    """Lower and upper end at each point."""
    line: bool = True
    """Whether the points are joined."""
    dashed: bool = False
    """Whether the line is dashed, and has no points."""


@dataclass(frozen=True)
class Chart:
    """A chart with its axes."""

    title: str
    """What it shows, for those who do not see it."""
    x_name: str
    """Below the axis."""
    y_name: str
    """Beside the axis."""
    x_ticks: tuple[tuple[float, str], ...]
    """Places and texts."""
    x_range: tuple[float, float]
    """Left and right end."""
    y_range: tuple[float, float]
    """Lower and upper end."""
    series: tuple[Series, ...]
    """What is drawn."""
    band: tuple[float, float] | None = None
    """Lower and upper end of a shaded band."""
    diagonal: bool = False
    """Whether the line y = x is drawn."""


def draw(chart: Chart) -> str:
    """The chart as an SVG element with a legend below it."""
    x, y = _scales(chart)
    parts = [f"<title>{escape(chart.title)}</title>"]
    if chart.band:
        high, low = (y(min(max(end, chart.y_range[0]), chart.y_range[1])) for end in (chart.band[1], chart.band[0]))
        parts.append(f'<rect class="band" x="{LEFT}" y="{high:.1f}" width="{RIGHT - LEFT}" height="{low - high:.1f}"/>')
    parts += _axes(chart, x, y)
    if chart.diagonal:
        low, high = max(chart.x_range[0], chart.y_range[0]), min(chart.x_range[1], chart.y_range[1])
        parts.append(f'<path class="grid strong" d="M{x(low):.1f} {y(low):.1f}L{x(high):.1f} {y(high):.1f}"/>')
    for one in chart.series:
        parts += _drawn(one, x, y)
    svg = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f'{svg}<ul class="legend">{"".join(map(_legend, chart.series))}</ul>'


def ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Round places on an axis of shares, with their texts."""
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 1.0) if (high - low) / step <= MOST_TICKS)
    numbers = range(round(low / step), round(high / step) + 1)
    return tuple((number * step, f"{number * step:.2f}".removesuffix("0") or "0") for number in numbers
                 if low - 1e-9 <= number * step <= high + 1e-9)  # fmt: skip


def _scales(chart: Chart) -> tuple[Scale, Scale]:
    def along(value: float, ends: tuple[float, float], first: float, last: float) -> float:
        return first + (value - ends[0]) / ((ends[1] - ends[0]) or 1) * (last - first)

    return (lambda value: along(value, chart.x_range, LEFT, RIGHT)), (
        lambda value: along(value, chart.y_range, BOTTOM, TOP)
    )


def _axes(chart: Chart, x: Scale, y: Scale) -> list[str]:
    parts = []
    for value, text in ticks(*chart.y_range):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in chart.x_ticks:
        parts.append(
            f'<text class="tick" x="{x(value):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{escape(text)}</text>'
        )
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x_name)}</text>')
    height = (TOP + BOTTOM) / 2
    parts.append(
        f'<text class="name" x="14" y="{height}" text-anchor="middle" transform="rotate(-90 14 {height})">'
        f"{escape(chart.y_name)}</text>"
    )
    return parts


def _drawn(one: Series, x: Scale, y: Scale) -> list[str]:
    parts = []
    color = f"c{one.color}"
    if one.line and one.points:
        path = "L".join(f"{x(px):.1f} {y(py):.1f}" for px, py in one.points)
        parts.append(f'<path class="line {color}{" dashed" if one.dashed else ""}" d="M{path}"/>')
    for (px, _), (low, high) in zip(one.points, one.intervals, strict=False):
        parts.append(f'<path class="whisker {color}" d="M{x(px):.1f} {y(low):.1f}V{y(high):.1f}"/>')
    if not one.dashed:
        parts += [f'<circle class="dot {color}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="3.5"/>' for px, py in one.points]
    return parts


def _legend(one: Series) -> str:
    sign = (
        '<path class="line {0} dashed" d="M1 6H21"/>'
        if one.dashed
        else '<circle class="dot {0}" cx="11" cy="6" r="4"/>'
    )
    drawn = sign.format(f"c{one.color}")
    return f'<li><svg class="sign" viewBox="0 0 22 12" aria-hidden="true">{drawn}</svg>{escape(one.name)}</li>'

"""Figures as SVG and PNG from one drawing: AUROC by layer, with intervals, baselines and the band of chance."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from midsight.probes.finding import Finding, ScoreResult
from midsight.probes.scored import CONFIDENCE_NAME

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 560, 44, 396
PNG_SCALE = 2
COLORS = {
    "query_token": "#1f5fa8",
    "vision_token": "#c8561d",
    "image_mean": "#7d5ba6",
    "other": "#4b7f52",
}
GREY, BAND, INK = "#666666", "#e4e4e4", "#222222"


@dataclass
class Drawing:
    """Lines, rectangles and texts, in pixels from the upper left."""

    marks: list[tuple[str, tuple[float, ...], str, dict[str, object]]] = field(default_factory=list)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 1.5, dash: bool = False) -> None:
        """A line through points."""
        flat = tuple(value for point in points for value in point)
        self.marks.append(("line", flat, color, {"width": width, "dash": dash}))

    def box(self, x0: float, y0: float, x1: float, y1: float, color: str) -> None:
        """A filled rectangle."""
        self.marks.append(("box", (x0, y0, x1, y1), color, {}))

    def text(self, x: float, y: float, text: str, color: str = INK, size: int = 12, anchor: str = "start") -> None:
        """A text whose base line is at `y`."""
        self.marks.append(("text", (x, y), color, {"text": text, "size": size, "anchor": anchor}))

    def svg(self, title: str) -> str:
        """The drawing as SVG."""
        body = "\n".join(_svg_mark(*mark) for mark in self.marks)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'font-family="sans-serif" role="img"><title>{escape(title)}</title>\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
        )

    def png(self) -> bytes:
        """The drawing as PNG, twice as large."""
        image = Image.new("RGB", (WIDTH * PNG_SCALE, HEIGHT * PNG_SCALE), "#ffffff")
        pen = ImageDraw.Draw(image)
        for mark in self.marks:
            _draw_mark(pen, *mark)
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()


def auroc_by_layer(finding: Finding) -> Drawing:
    """AUROC by layer of every position, with intervals; baselines are dashed, and the band is chance."""
    drawing = Drawing()
    results = [*finding.columns, *_shown_baselines(finding)]
    lowest = min(0.45, *(one.auroc_interval[0] for one in results))
    layers = sorted({one.layer for one in finding.columns if one.layer is not None})
    others = [one for one in finding.columns if one.layer is None]
    axes = _Axes(lowest, layers, len(others))
    drawing.text(
        LEFT, 22, f"{finding.label}: AUROC by layer ({finding.tested} samples, {finding.groups} groups)", size=14
    )
    _chance_band(drawing, axes, finding)
    axes.draw(drawing)
    labels: list[tuple[float, str, str]] = []
    for position in dict.fromkeys(one.position for one in finding.columns if one.layer is not None):
        mine = sorted((one for one in finding.columns if one.position == position), key=lambda one: one.layer or 0)
        color = COLORS.get(position or "", COLORS["other"])
        drawing.line([(axes.x(one.layer or 0), axes.y(one.auroc)) for one in mine], color, 2)
        for one in mine:
            _point(drawing, axes.x(one.layer or 0), axes, one, color)
        labels.append((axes.y(mine[-1].auroc), str(position), color))
    for index, one in enumerate(others):
        _point(drawing, axes.other_x(index), axes, one, COLORS["other"])
        drawing.text(
            axes.other_x(index),
            BOTTOM + 34,
            "encoder" if "vision" in one.column else "pixels",
            size=11,
            anchor="middle",
        )
    for one in _shown_baselines(finding):
        drawing.line([(LEFT, axes.y(one.auroc)), (RIGHT, axes.y(one.auroc))], GREY, 1.5, dash=True)
        labels.append((axes.y(one.auroc), f"{one.column} {one.auroc:.3f}", GREY))
    _label_right(drawing, labels)
    return drawing


class _Axes:
    def __init__(self, lowest: float, layers: Sequence[int], others: int) -> None:
        self.low = max(0.0, int(lowest * 20) / 20)
        self.layers = layers
        self._start = LEFT + 40 * others + 24
        self._others = others

    def y(self, auroc: float) -> float:
        return BOTTOM - (auroc - self.low) / (1 - self.low) * (BOTTOM - TOP)

    def x(self, layer: int) -> float:
        first, last = self.layers[0], self.layers[-1]
        return self._start + (layer - first) / max(last - first, 1) * (RIGHT - 24 - self._start)

    def other_x(self, index: int) -> float:
        return LEFT + 28 + 40 * index

    def draw(self, drawing: Drawing) -> None:
        drawing.line([(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], INK, 1)
        step = 0.1 if self.low < 0.8 else 0.05
        for number in range(round(1 / step) + 1):
            value = number * step
            if value >= self.low - 1e-9:
                drawing.line([(LEFT - 4, self.y(value)), (LEFT, self.y(value))], INK, 1)
                drawing.text(LEFT - 8, self.y(value) + 4, f"{value:.2f}", size=11, anchor="end")
        for layer in self.layers[:: max(1, len(self.layers) // 12)]:
            drawing.text(self.x(layer), BOTTOM + 18, str(layer), size=11, anchor="middle")
        if self.layers:
            drawing.text((self._start + RIGHT) / 2, BOTTOM + 38, "decoder layer", anchor="middle")


def _shown_baselines(finding: Finding) -> list[ScoreResult]:
    named = [
        finding.baseline(CONFIDENCE_NAME),
        *(one for one in finding.baselines if one.column.startswith("stratum: ")),
    ]
    return [one for one in named if one is not None]


def _chance_band(drawing: Drawing, axes: _Axes, finding: Finding) -> None:
    bands = [one.chance for one in finding.columns if one.chance]
    if bands:
        low, high = min(band[0] for band in bands), max(band[1] for band in bands)
        drawing.box(LEFT, axes.y(min(high, 1)), RIGHT, axes.y(max(low, axes.low)), BAND)
    drawing.line([(LEFT, axes.y(0.5)), (RIGHT, axes.y(0.5))], "#aaaaaa", 1)


def _point(drawing: Drawing, x: float, axes: _Axes, one: ScoreResult, color: str) -> None:
    low, high = (axes.y(max(axes.low, end)) for end in one.auroc_interval)
    drawing.line([(x, low), (x, high)], color, 1.5)
    drawing.box(x - 3, axes.y(one.auroc) - 3, x + 3, axes.y(one.auroc) + 3, color)


def _label_right(drawing: Drawing, labels: list[tuple[float, str, str]]) -> None:
    """Names beside the right end, moved down where they would overlap."""
    bottom = 0.0
    for y, text, color in sorted(labels):
        bottom = max(y + 4, bottom + 14)
        drawing.text(RIGHT + 8, bottom, text, color, size=11)


def _svg_mark(kind: str, at: tuple[float, ...], color: str, more: dict) -> str:
    if kind == "box":
        x0, y0, x1, y1 = at
        return f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="{color}"/>'
    if kind == "line":
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(at[::2], at[1::2], strict=True))
        dash = ' stroke-dasharray="5 4"' if more["dash"] else ""
        return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{more["width"]}"{dash}/>'
    return (
        f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" fill="{color}" font-size="{more["size"]}" '
        f'text-anchor="{more["anchor"]}">{escape(str(more["text"]))}</text>'
    )


def _draw_mark(pen: ImageDraw.ImageDraw, kind: str, at: tuple[float, ...], color: str, more: dict) -> None:
    scaled = [value * PNG_SCALE for value in at]
    if kind == "box":
        pen.rectangle(scaled, fill=color)
    elif kind == "text":
        font = ImageFont.load_default(more["size"] * PNG_SCALE)
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[more["anchor"]]
        pen.text((scaled[0], scaled[1]), str(more["text"]), fill=color, font=font, anchor=anchor)
    else:
        points = [*zip(scaled[::2], scaled[1::2], strict=True)]
        for start, end in pairwise(points):
            for piece in _dashes(start, end) if more["dash"] else [(start, end)]:
                pen.line([*piece], fill=color, width=max(1, round(more["width"] * PNG_SCALE)))


def _dashes(
    start: tuple[float, float], end: tuple[float, float]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    length = max(((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5, 1e-9)

    def point(at: float) -> tuple[float, float]:
        share = min(at / length, 1.0)
        return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])

    return [(point(at), point(at + 10)) for at in range(0, int(length), 18)]

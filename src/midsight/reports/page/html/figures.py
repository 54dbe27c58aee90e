"""The charts of a finding: AUROC by layer, calibration, accuracy by the share answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from midsight.probes.finding import Finding, ScoreResult
from midsight.probes.scored import CONFIDENCE_NAME
from midsight.reports.page.content import Curves, FindingPart
from midsight.reports.page.html.charts import Chart, Series, draw, ticks

POSITION_COLORS = {"query_token": 0, "vision_token": 1, "image_mean": 2}
OTHER_COLOR, BASELINE_COLOR = 3, 7
SCORE_COLORS = {"probe": 0, "confidence": 1}
MOST_LAYERS = 9
"""Layers that are named below the axis."""


@dataclass(frozen=True)
class Figure:
    """A chart with its heading."""

    heading: str
    """Above the chart."""
    note: str
    """Below it: how to read it."""
    svg: Markup
    """The chart."""


def figures_of(part: FindingPart) -> list[Figure]:
    """The charts that the finding has data for."""
    found = [_auroc(part.finding)]
    if part.curves:
        found.append(_calibration(part.curves))
    answered = _answered(part)
    return [*found, *([answered] if answered else [])]


def _auroc(finding: Finding) -> Figure:
    by_layer = [one for one in finding.columns if one.layer is not None]
    others = [one for one in finding.columns if one.layer is None]
    layers = sorted({one.layer for one in by_layer if one.layer is not None}) or [0]
    step = (layers[-1] - layers[0]) / 8 or 1
    left = layers[0] - step * (0.5 + len(others))
    low = min([0.5, *(one.auroc_interval[0] for one in [*finding.columns, *_shown_baselines(finding)])])
    ends = (left, layers[-1] + step / 2)
    series = [*_positions(by_layer), *_others(others, left, step)]
    series += [
        Series(
            f"{one.column} {one.auroc:.3f}", BASELINE_COLOR, ((ends[0], one.auroc), (ends[1], one.auroc)), dashed=True
        )
        for one in _shown_baselines(finding)
    ]
    bands = [one.chance for one in finding.columns if one.chance]
    named = layers[:: max(1, -(-len(layers) // MOST_LAYERS))]
    chart = Chart(
        title=f"AUROC of {finding.label} by decoder layer, with 95 % intervals",
        x_name="decoder layer",
        y_name="AUROC",
        x_ticks=tuple((float(layer), str(layer)) for layer in named),
        x_range=ends,
        y_range=(int(low * 20) / 20, 1.0),
        series=tuple(series),
        band=(min(low for low, _ in bands), max(high for _, high in bands)) if bands else None,
    )
    note = "Bars are 95 % intervals. " + (
        "The shaded band holds 95 % of AUROCs under permuted labels." if bands else ""
    )
    return Figure("AUROC by layer", note.strip(), Markup(draw(chart)))  # noqa: S704  (the chart escapes its texts)


def _positions(results: Sequence[ScoreResult]) -> Iterable[Series]:
    keys = dict.fromkeys((one.position, one.method, one.column.endswith("_residual")) for one in results)
    for number, (position, method, residual) in enumerate(keys):
        mine = sorted(
            (one for one in results if (one.position, one.method, one.column.endswith("_residual"))
             == (position, method, residual)),
            key=lambda one: one.layer or 0,
        )  # fmt: skip
        notes = [*(["residual"] if residual else []), *([method] if method != "ridge" else [])]
        name = f"{position}{f' ({chr(44).join(notes)})' if notes else ''}".replace("_", " ")
        color = POSITION_COLORS.get(position or "", OTHER_COLOR) if not notes else 4 + number % 3
        points = tuple((float(one.layer or 0), one.auroc) for one in mine)
        yield Series(name, color, points, tuple(one.auroc_interval for one in mine))


def _others(results: Sequence[ScoreResult], left: float, step: float) -> Iterable[Series]:
    """Columns without a layer, left of the first one."""
    for number, one in enumerate(results):
        name = one.column.replace("_representation", "").replace("_", " ")
        place = left + step * (0.5 + number)
        yield Series(name, OTHER_COLOR, ((place, one.auroc),), (one.auroc_interval,), line=False)


def _shown_baselines(finding: Finding) -> list[ScoreResult]:
    return [
        one for one in finding.baselines if one.column == CONFIDENCE_NAME or one.column.startswith("stratum: ")
    ]  # fmt: skip


def _calibration(curves: Sequence[Curves]) -> Figure:
    chart = Chart(
        title="Share of true labels by predicted probability",
        x_name="predicted probability",
        y_name="share true",
        x_ticks=ticks(0, 1),
        x_range=(0, 1),
        y_range=(0, 1),
        series=tuple(
            Series(
                one.score, SCORE_COLORS[one.score], tuple((point.predicted, point.share) for point in one.calibration)
            )
            for one in curves
        ),
        diagonal=True,
    )
    note = "Ten bins with equally many samples. On the diagonal, a probability is what it says."
    return Figure("Calibration", note, Markup(draw(chart)))  # noqa: S704  (the chart escapes its texts)


def _answered(part: FindingPart) -> Figure | None:
    by_score = {one.score: [(point.answered, point.accuracy) for point in one.answered] for one in part.curves}
    if not by_score:
        by_score = {"confidence": [(point.answered, point.accuracy) for point in part.finding.abstention]}
    lowest = min((share for points in by_score.values() for _, share in points), default=None)
    if lowest is None:
        return None
    chart = Chart(
        title="Share of true labels among the surest samples, by how many are answered",
        x_name="share answered, surest first",
        y_name="share true",
        x_ticks=ticks(0, 1),
        x_range=(0, 1),
        y_range=(int(lowest * 10) / 10, 1.0),
        series=tuple(Series(name, SCORE_COLORS[name], tuple(points)) for name, points in by_score.items()),
    )
    note = "If the model answers only what the score is surest of, this share of its answers has a true label."
    return Figure("Accuracy by share answered", note, Markup(draw(chart)))  # noqa: S704  (the chart escapes its texts)

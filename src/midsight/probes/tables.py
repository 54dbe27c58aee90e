"""A finding as CSV, as Markdown and for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from midsight.errors import counted
from midsight.probes.finding import Finding, Pair, ScoreResult
from midsight.probes.scored import CONFIDENCE_NAME

_FIELDS = (
    "column", "layer", "position", "method", "when", "image_only", "auroc", "auroc_low", "auroc_high", "p",
    "p_familywise", "auprc", "auprc_of_false", "accuracy", "brier", "calibration_error", "minus_confidence",
    "minus_confidence_low", "minus_confidence_high", "gain", "gain_low", "gain_high", "penalty",
)  # fmt: skip


def scores_csv(results: Iterable[ScoreResult]) -> str:
    """Every figure of every result."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _FIELDS)
    writer.writeheader()
    for one in results:
        row: dict[Any, Any] = {name: getattr(one, name, None) for name in _FIELDS}
        for name in ("auroc", "minus_confidence", "gain"):
            low, high = getattr(one, f"{name}_interval") or ("", "")
            row |= {f"{name}_low": low, f"{name}_high": high}
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
    return out.getvalue()


def strata_csv(finding: Finding) -> str:
    """Results within each stratum."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["stratum", "value", "n", "positives", "column", "auroc", "auroc_low", "auroc_high"])
    for one in finding.strata:
        if not one.auroc:
            writer.writerow([one.stratum, one.value, one.n, one.positives, "", "", "", ""])
        for column, value in one.auroc.items():
            writer.writerow([one.stratum, one.value, one.n, one.positives, column, value, *one.auroc_interval[column]])
    return out.getvalue()


def as_markdown(finding: Finding) -> str:
    """The finding as a page: what it is of, its conclusion, and its tables."""
    strata = [*dict.fromkeys(one.stratum for one in finding.strata)]
    heads = ["column", "AUROC (95 %)", "p", "p, family-wise", "minus confidence", "gain with confidence",
             *(f"within {name}" for name in strata)]  # fmt: skip
    rows = [[*_cells(one), *(_figure(one.within_strata.get(name)) for name in strata)] for one in _all(finding)]
    lines = [
        f"# {finding.name}",
        "",
        *(f"* {fact}" for fact in describe(finding)),
        "",
        *(f"{sentence}  " for sentence in conclude(finding)),
        "",
        "| " + " | ".join(heads) + " |",
        "| --- |" + " --- |" * (len(heads) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"* {line}" for line in halp_lines(finding)),
        *(f"* {warning}" for warning in finding.warnings),
    ]
    return "\n".join(lines).rstrip() + "\n"


def render_finding(finding: Finding) -> RenderableType:
    """The finding for a rich console."""
    numbers = [Column(name, no_wrap=True) for name in ("AUROC", "95 %", "p", "p fw", "- conf.", "gain")]
    table = Table(Column("", overflow="fold"), *numbers, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for one in _all(finding):
        cells = (
            _figure(one.auroc), _range(one.auroc_interval), _p(one.p), _p(one.p_familywise),
            _signed(one.minus_confidence), _signed(one.gain),
        )  # fmt: skip
        table.add_row(Text(_short(one)), *cells)
    blocks: list[RenderableType] = [Text(". ".join(describe(finding)) + "."), table]
    blocks += [Text(sentence) for sentence in (*conclude(finding), *halp_lines(finding))]
    blocks += [Text(f"Warning: {warning}", style="yellow") for warning in finding.warnings]
    return Group(*blocks)


def describe(finding: Finding) -> list[str]:
    """What the finding is of."""
    return [
        f"{finding.label} by {finding.label_source}: true for {finding.positives:,} of "
        f"{counted(finding.tested, 'tested sample')} ({finding.base_rate:.1%})",
        f"Tested by {finding.tested_on if '/' not in finding.tested_on else f'the run {finding.tested_on}'}, "
        f"{counted(finding.groups, 'group')} by {', '.join(finding.group_by)}, {counted(finding.folds, 'fold')}, "
        f"{counted(finding.permutations, 'permutation')}",
    ]


def conclude(finding: Finding) -> list[str]:
    """What may be claimed: whether probes beat chance, and whether they beat or add to the model's confidence."""
    probe = finding.chosen or finding.best
    if probe is None:
        return []
    name = "The column chosen in inner folds" if finding.chosen else f"The probe of {probe.column}"
    chance = "" if probe.p is None else f", p = {_p(probe.p)} against chance"
    said = [f"{name} has AUROC {probe.auroc:.3f} ({_range(probe.auroc_interval)}){chance}."]
    confidence = finding.baseline(CONFIDENCE_NAME)
    if confidence and probe.minus_confidence is not None and probe.minus_confidence_interval is not None:
        verdict = _verdict(probe.minus_confidence_interval, "worse than", "not clearly different from", "better than")
        said.append(
            f"It is {verdict} the model's own confidence before the answer, {confidence.auroc:.3f}: "
            f"{_signed(probe.minus_confidence)} ({_range(probe.minus_confidence_interval)})."
        )
    if probe.gain is not None and probe.gain_interval is not None:
        verdict = _verdict(probe.gain_interval, "are worse than", "are not clearly better than", "are better than")
        said.append(
            f"Probe and confidence together {verdict} confidence alone: {_signed(probe.gain)} "
            f"({_range(probe.gain_interval)})."
        )
    return said


def halp_lines(finding: Finding) -> list[str]:
    """What the paper's recipe gives, marked as such."""
    return [
        f"HALP's own recipe on {one.column}: AUROC {one.auroc:.3f}, {one.train_auroc:.3f} in training. "
        f"{one.tested_on_training_images:,} of its {one.tested:,} test rows are of images that it was trained on; "
        "do not compare it with the figures above."
        for one in finding.halp
    ]


def _all(finding: Finding) -> list[ScoreResult]:
    return [*finding.columns, *([finding.chosen] if finding.chosen else []), *finding.baselines]


def _verdict(interval: Pair, below: str, around: str, above: str) -> str:
    return below if interval[1] < 0 else above if interval[0] > 0 else around


def _cells(one: ScoreResult) -> list[str]:
    return [
        _short(one), f"{_figure(one.auroc)} ({_range(one.auroc_interval)})", _p(one.p), _p(one.p_familywise),
        _with_range(one.minus_confidence, one.minus_confidence_interval), _with_range(one.gain, one.gain_interval),
    ]  # fmt: skip


def _short(one: ScoreResult) -> str:
    notes: Sequence[str] = [
        *(["image only"] if one.image_only else []),
        *([one.method] if one.position and one.method != "ridge" else []),
        *(["after the answer"] if one.when == "after the answer" else []),
    ]
    return one.column.replace("_representation", "") + (f" [{', '.join(notes)}]" if notes else "")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _range(pair: Pair) -> str:
    return f"{pair[0]:.3f} to {pair[1]:.3f}"


def _with_range(value: float | None, pair: Pair | None) -> str:
    return "" if pair is None else f"{_signed(value)} ({_range(pair)})"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"

"""The page: one HTML file that loads nothing and runs only its own script."""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from importlib.resources import files
from pathlib import PurePath

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from midsight.labels.judge import JUDGES
from midsight.reports.page.content import Report
from midsight.reports.page.html.facts import groups_of_facts, prompt_example
from midsight.reports.page.html.figures import figures_of
from midsight.reports.page.html.packing import pack

TEMPLATE, STYLE = "page.html", "page.css"
SCRIPTS = ("data.js", "table.js", "map.js", "start.js")
"""In the order in which they are joined."""
SHOWN_FAILURES = 20
SHOWN_VALUES = 12
"""Values of a column that accuracy is shown for without being asked."""


def page_of(report: Report) -> str:
    """The page of a summary."""
    style, script, packed = asset(STYLE), "".join(map(asset, SCRIPTS)), pack(report)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": _count, "percent": _percent, "figure": _figure, "signed": _signed}
    return environment.from_string(asset(TEMPLATE)).render(
        report=report,
        name=without_controls(PurePath(report.path).name),
        facts=groups_of_facts(report),
        prompt=prompt_example(report),
        figures=figures_of(report.finding) if report.finding else [],
        scores=_scores(report),
        strata=[*dict.fromkeys(one.stratum for one in report.finding.finding.strata)] if report.finding else [],
        is_judged=report.label is not None and report.label.record.source in JUDGES,
        failures=report.failures[:SHOWN_FAILURES],
        shown_values=SHOWN_VALUES,
        packed=packed,
        data=Markup(packed.json),  # noqa: S704  (escaped for a script element)
        style=Markup(style),  # noqa: S704  (our own file)
        script=Markup(script),  # noqa: S704  (our own file)
        style_hash=content_hash(style),
        script_hash=content_hash(script),
    )


def asset(name: str) -> str:
    """One of the files that the page is made of."""
    return files("midsight.reports.page.html").joinpath(name).read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """The hash by which a content policy permits an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def without_controls(text: str) -> str:
    """The text without characters that change the direction of what follows, for places that cannot isolate it."""
    return "".join(sign for sign in text if unicodedata.category(sign) not in ("Cc", "Cf"))


def _scores(report: Report) -> list:
    """The results of a finding: columns, the chosen one, baselines."""
    if report.finding is None:
        return []
    finding = report.finding.finding
    return [*finding.columns, *([finding.chosen] if finding.chosen else []), *finding.baselines]


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"

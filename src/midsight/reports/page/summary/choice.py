"""Which label, finding and risk a report shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from midsight.errors import DamagedRunError, MidsightError, Option
from midsight.probes.finding import Finding
from midsight.reports.page.summary.risk import Risk, risk_of_finding, risk_of_run, risk_of_table
from midsight.store.annotations import label_names, read_label, read_label_record
from midsight.store.findings import finding_names, read_predictions, read_result
from midsight.store.reader import Run
from midsight.store.typed_json import WrongJsonError, from_json

USUAL_LABEL = "correct"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report shows."""

    column: str | None = None
    """Vector column of the map, or a position; by default the finding's."""
    label: str | None = None
    """The label; by default the finding's, else `correct`, else the first one."""
    finding: str | None = None
    """The finding; by default one of the label."""
    risk: str | Path | None = None
    """Table of risks, in place of the finding's."""
    images: str | Path | None = None
    """Folder that image paths start from; by default what run.json says."""


@dataclass(frozen=True)
class Choice:
    """What a report shows of what a run has."""

    label: str | None
    """Name of the label; None if the run has none."""
    finding: Finding | None
    """The finding; None if the label was not probed."""
    predictions: pa.Table | None
    """The finding's predictions; None if it stores none."""
    risk: Risk | None
    """The risks of samples; None if they are not known."""
    notes: tuple[str, ...]
    """What a reader must know about the choice."""


def choose(run: Run, options: ReportOptions) -> Choice:
    """What the options mean for a run; raises MidsightError if it does not have what they name."""
    named = None if options.finding is None else _finding(run, options.finding)
    label = options.label or (named.label if named else _usual_label(run))
    if options.label is not None:
        read_label_record(run.path, run.spec.run_id, options.label)
    if named is not None and named.label != label:
        raise MidsightError(
            f"The finding {named.name} is about the label {named.label}; leave out ", Option("label"), ", or give ",
            Option("label", named.label), ".",
        )  # fmt: skip
    finding = named or _finding_of_label(run, label)
    predictions = None if finding is None else read_predictions(run.path, finding.name)
    if options.risk is not None:
        return Choice(label, finding, predictions, risk_of_table(options.risk), ())
    predicted = None if finding is None else risk_of_finding(finding, predictions, run.spec.run_id)
    risk = predicted or risk_of_run(run)
    notes = () if finding is None or risk is not None else (_no_risk(finding, predictions),)
    return Choice(label, finding, predictions, risk, notes)


def values_of_label(run: Run, label: str, ids: list[str]) -> list[bool | None]:
    """The label's value for each of the samples."""
    stored = read_label(run.path, run.spec.run_id, label)
    values = dict(zip(stored["sample_id"].to_pylist(), stored["value"].to_pylist(), strict=True))
    return [values.get(sample_id) for sample_id in ids]


def _usual_label(run: Run) -> str | None:
    names = label_names(run.path)
    return USUAL_LABEL if USUAL_LABEL in names else names[0] if names else None


def _finding_of_label(run: Run, label: str | None) -> Finding | None:
    """The finding of a label: the one of the same name, else the first."""
    if label is None:
        return None
    found = [one for one in (_finding(run, name) for name in finding_names(run.path)) if one.label == label]
    return next((one for one in found if one.name == label), found[0] if found else None)


def _finding(run: Run, name: str) -> Finding:
    result = read_result(run.path, run.spec.run_id, name)
    try:
        return from_json(Finding, result)
    except WrongJsonError as error:
        raise DamagedRunError(
            f"The finding {name} of {run.path} was not made by this midsight ({error}); make it again."
        ) from error


def _no_risk(finding: Finding, predictions: pa.Table | None) -> str:
    if predictions is None:
        return (
            f"The finding {finding.name} stores no predictions, because an earlier midsight made it; "
            "`midsight probe` makes it again, with a risk for each sample."
        )
    return f"The finding {finding.name} was tested on another run, so samples of this one have no risk."

"""A risk for each sample: what a finding predicted of samples it did not learn from, what is stored, or a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import pyarrow as pa

from midsight.errors import MidsightError, Option
from midsight.labels.outside import cell_text
from midsight.probes.finding import Finding
from midsight.samples.places import find_place
from midsight.samples.rows import quoted_names, shortened_json
from midsight.samples.sources import open_table
from midsight.store.reader import Run

ID, RISK = "sample_id", "risk"
"""Columns of a table of risks, as `midsight score` writes it."""

TOO_GOOD = "If that probe was trained on samples of this run, their risk looks too good."


@dataclass(frozen=True)
class Risk:
    """Probabilities that the label is false."""

    by_sample: Mapping[str, float]
    """By sample id, from 0 to 1."""
    source: str
    """Where they come from, in a sentence."""


def risk_of_finding(finding: Finding, predictions: pa.Table | None, run_id: str) -> Risk | None:
    """What the finding's probe says of the run's samples that it was not trained on; None if it says nothing."""
    if predictions is None:
        return None
    rows = zip(*(predictions[name].to_pylist() for name in ("sample_id", "run_id", "probe")), strict=True)
    by_sample = {sample_id: 1 - probability for sample_id, owner, probability in rows if owner == run_id}
    if not by_sample:
        return None
    groups = " and ".join(finding.group_by)
    return Risk(
        by_sample,
        f"Risk is the probability that the label {finding.label} is false, from the finding {finding.name}. Each "
        f"sample's risk is from a probe that was trained on other groups of {groups}.",
    )


def risk_of_run(run: Run) -> Risk | None:
    """The risks that an extraction with a probe stored; None for other runs."""
    spec = run.spec.risks
    if spec is None:
        return None
    by_sample: dict[str, float] = {}
    for batch in run.batches([ID, RISK]):
        by_sample |= zip(batch[ID].to_pylist(), batch[RISK].to_pylist(), strict=True)
    return Risk(
        by_sample,
        f"Risk is the probability that the label {spec.label} is {spec.of}, stored before the answer, from the probe "
        f"{spec.probe or 'that was given in Python'}. {TOO_GOOD}",
    )


def risk_of_table(path: str | Path) -> Risk:
    """The risks in a table with the columns `sample_id` and `risk`; raises MidsightError if it holds none."""
    table = open_table(find_place(path))
    for name in (ID, RISK):
        if name not in table.columns:
            raise MidsightError(
                f"{path} has no column {name!r}; it has {quoted_names(table.columns)}; give the table that "
                "`midsight score` writes as ", Option("risk"), ".",
            )  # fmt: skip
    by_sample: dict[str, float] = {}
    for row in table.rows(""):
        where = f"{path}, {table.unit} {row.number}"
        if row.problem:
            raise MidsightError(f"{where} cannot be read: {row.problem}")
        if row.cells.get(RISK) not in (None, ""):
            by_sample[cell_text(row.cells.get(ID))] = _probability(row.cells[RISK], where)
    return Risk(by_sample, f"Risk is from {path}. {TOO_GOOD}")


def _probability(value: object, where: str) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    if not (isfinite(number) and 0 <= number <= 1):
        raise MidsightError(f"{where} holds the risk {shortened_json(value)}, which is not a number from 0 to 1.")
    return number

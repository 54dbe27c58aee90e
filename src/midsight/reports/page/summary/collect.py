"""The summary of a run, from its parts, labels and findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from midsight.probes.tables import conclude
from midsight.reports.page.content import Counts, FailureKind, FindingPart, Label, Report, Vectors
from midsight.reports.page.summary.accuracy import answers_of, kinds_of_references, label_of
from midsight.reports.page.summary.choice import Choice, ReportOptions, choose, values_of_label
from midsight.reports.page.summary.curves import curves_of
from midsight.reports.page.summary.pictures import small_pictures
from midsight.reports.page.summary.plane import column_of_map, map_or_note
from midsight.reports.page.summary.samples import extra_columns_of, images_by_need, samples_of, shown_rows
from midsight.reports.reasons import kinds_of_failures
from midsight.reports.summary import Summary, summarise
from midsight.store.annotations import read_label_record
from midsight.store.hub import shown_place
from midsight.store.reader import Run
from midsight.store.typed_json import to_json


def report_of(run: Run, options: ReportOptions) -> Report:
    """The summary of a run.

    Args:
        run: The run.
        options: What is shown.

    Returns:
        The summary.

    Raises:
        MidsightError: The run does not have the column, the label or the finding, or the table of risks is not usable.
        DamagedRunError: Stored bytes are not those that were written.
    """
    choice = choose(run, options)
    summary, table = summarise(run), run.table()
    values = None if choice.label is None else values_of_label(run, choice.label, table["sample_id"].to_pylist())
    rows = shown_rows(table.num_rows)
    shown, shown_values = table.take(pa.array(rows)), None if values is None else [values[row] for row in rows]
    vectors, extras = _vectors(summary), extra_columns_of(run.spec)
    column = column_of_map(run, options.column, vectors, choice.finding)
    plane, map_notes = map_or_note(run, column, options.column, shown)
    pictures, picture_notes = small_pictures(run, images_by_need(shown, shown_values), options.images)
    return Report(
        path=shown_place(run.path),
        spec=to_json(run.spec),
        counts=Counts(stored=summary.rows, failed=len(summary.failures), dataset_rows=summary.dataset_rows,
                      images=summary.images),
        failures=_failures(summary),
        vectors=vectors,
        answers=answers_of(summary, table),
        label=_label(run, choice.label, values, table, extras),
        finding=_finding_part(choice, values, table),
        map=plane,
        samples=samples_of(
            shown, table.num_rows, extras=extras, label=shown_values, risk=choice.risk, pictures=pictures
        ),
        notes=(*choice.notes, *map_notes, *picture_notes),
    )  # fmt: skip


def _failures(summary: Summary) -> tuple[FailureKind, ...]:
    return tuple(
        FailureKind(count=count, sample_id=one.sample_id, input_index=one.input_index, reason=one.reason)
        for one, count in kinds_of_failures(summary.failures)
    )


def _vectors(summary: Summary) -> tuple[Vectors, ...]:
    return tuple(
        Vectors(column=one.name, width=one.width, mean_norm=one.mean_norm, constant=one.constant,
                missing=one.non_finite)
        for one in summary.vectors
    )  # fmt: skip


def _label(
    run: Run, name: str | None, values: Sequence[bool | None] | None, table: pa.Table, extras: Sequence[str]
) -> Label | None:
    if name is None or values is None:
        return None
    discrete = [one for one in extras if not pa.types.is_floating(table.schema.field(one).type)]
    columns: dict[str, Sequence[Any]] = {one: table[one].to_pylist() for one in discrete}
    record = read_label_record(run.path, run.spec.run_id, name)
    return label_of(record, values, {**kinds_of_references(table), **columns})


def _finding_part(choice: Choice, values: Sequence[bool | None] | None, table: pa.Table) -> FindingPart | None:
    if choice.finding is None:
        return None
    labelled = np.array([value is not None for value in values or ()], bool)
    images = {*table["image_id"].filter(pa.array(labelled)).to_pylist()} if len(labelled) else set()
    return FindingPart(
        finding=choice.finding,
        conclusions=tuple(conclude(choice.finding)),
        images=len(images),
        curves=curves_of(choice.predictions),
    )

"""Labels a run: one value for each sample, stored beside the parts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from midsight.errors import MidsightError, Option, counted
from midsight.labels.judge import (
    JUDGES,
    Judge,
    JudgeOptions,
    OutsideDomainError,
    Undecided,
    Verdict,
    find_judge,
    require_known_options,
)
from midsight.labels.outside import cell_text, read_verdicts
from midsight.labels.table import count_table
from midsight.samples.choices import choices_of, is_choice_column
from midsight.store.annotations import LABEL_SCHEMA, LabelRecord, validate_name, write_label
from midsight.store.reader import Run

NO_REFERENCE = "no reference answer"
UNREAD = "undecided"
NO_ROW = "no row in the file"
ABSTAINED = "abstained"
"""Why a value is null."""


def label_run(run: Run, judge: str, *, name: str = "correct", options: JudgeOptions | None = None) -> LabelRecord:
    """Judges every answer of a run and stores the verdicts as the label `name`.

    Args:
        run: A run with answers.
        judge: Name of a judge.
        name: Name of the label.
        options: What changes the verdicts.

    Returns:
        What was counted.

    Raises:
        MidsightError: The judge is unknown, the run has no answers, or a reference is outside the judge's domain.
    """
    validate_name(name)
    options = options or JudgeOptions()
    rows, verdicts, reasons = judge_run(run, judge, options)
    return write_label(
        run.path,
        _as_table(pa.array([row["sample_id"] for row in rows]), verdicts, reasons),
        run_id=run.spec.run_id,
        name=name,
        source=judge,
        options=_changed(options),
        table=count_table(verdict for verdict in verdicts if verdict),
        differs_from_pope=_different_from_pope(rows, verdicts) if judge.startswith("yes_no") else None,
        **_counts(verdicts, reasons),
    )


def judge_run(
    run: Run, judge: str, options: JudgeOptions
) -> tuple[list[dict[str, Any]], list[Verdict | None], list[str | None]]:
    """The rows of a run, the verdict on each, and why there is none; raises MidsightError as `label_run` does."""
    found = find_judge(judge)
    require_known_options(found, options)
    if not run.spec.request.answers:
        raise MidsightError(
            f"{run.path} has no answers; extract it with ", Option("answers", True), ", or take verdicts from a file."
        )
    table = run.table()
    choices = [name for name in table.column_names if is_choice_column(name)] if judge.startswith("choice") else []
    table = table.select(["sample_id", "input_index", "answer", "reference_answers", *choices])
    if not table.num_rows:
        raise MidsightError(f"{run.path} holds no samples; extract some first.")
    rows = table.to_pylist()
    abstained = abstained_ids(run)
    verdicts = [None if row["sample_id"] in abstained else _judge_row(found, row, options) for row in rows]
    reasons = [
        _reason(verdict, NO_REFERENCE, abstained=row["sample_id"] in abstained and bool(row["reference_answers"]))
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    return rows, verdicts, reasons


def abstained_ids(run: Run) -> set[str]:
    """The ids of the samples that were not answered, because their risk was too high."""
    if run.spec.risks is None or run.spec.risks.abstain_above is None:
        return set()
    return {
        sample_id
        for batch in run.batches(["sample_id", "finish_reason"])
        for sample_id, reason in zip(*(batch.column(name).to_pylist() for name in batch.column_names), strict=True)
        if reason == ABSTAINED
    }


def label_from_file(
    run: Run,
    path: str | Path,
    *,
    id_column: str,
    column: str,
    name: str = "correct",
    threshold: float | None = None,
    null_words: Collection[str] = (),
) -> tuple[LabelRecord, str]:
    """Stores verdicts from a file as the label `name`.

    Args:
        run: The run.
        path: The file, or its address: JSONL, JSON, CSV, TSV or Parquet.
        id_column: Its column of sample ids.
        column: Its column of verdicts or scores.
        name: Name of the label.
        threshold: The lowest score that is right; None if the verdicts are not scores.
        null_words: Words that mean undecided, besides an empty cell.

    Returns:
        What was counted, and a sentence about ids that do not match.

    Raises:
        MidsightError: The file is not usable, or none of its ids is one of the run's.
    """
    validate_name(name)
    outside = read_verdicts(path, id_column, column, threshold=threshold, null_words=null_words)
    ids = run.sample_ids()
    known = {*ids}
    unknown = [one for one in outside.verdicts if one not in known]
    if len(unknown) == len(outside.verdicts):
        example = f", for example {unknown[0]!r} against {ids[0]!r}" if unknown and ids else ""
        raise MidsightError(f"{path} and {run.path} have no id in common{example}; choose the column of ids with ",
                            Option("id"), ".")  # fmt: skip
    abstained = abstained_ids(run)  # whatever the file says of them, there is no answer to be right or wrong
    verdicts = [None if sample_id in abstained else outside.verdicts.get(sample_id) for sample_id in ids]
    reasons = [
        _reason(verdict, NO_ROW, abstained=sample_id in abstained)
        for sample_id, verdict in zip(ids, verdicts, strict=True)
    ]
    record = write_label(
        run.path,
        _as_table(pa.array(ids), verdicts, reasons),
        run_id=run.spec.run_id,
        name=name,
        source=str(path),
        options={
            "id": id_column,
            "column": column,
            **({} if threshold is None else {"threshold": f"{threshold:g}"}),
            **({"null_words": ",".join(null_words)} if null_words else {}),
        },
        table=None,
        differs_from_pope=None,
        **_counts(verdicts, reasons),
    )
    matched = len(outside.verdicts) - len(unknown)
    return record, (
        f"{counted(matched, 'id')} of {path} {'is' if matched == 1 else 'are'} in the run, "
        f"{counted(len(unknown), 'is', 'are')} not; "
        f"{counted(len(ids) - matched, 'sample has', 'samples have')} no row in the file; "
        f"{counted(outside.repeated, 'row repeats', 'rows repeat')} an id."
    )


def _judge_row(judge: Judge, row: dict[str, Any], options: JudgeOptions) -> Verdict | None:
    """The verdict on one row; None without a reference. An answer that is missing stays undecided."""
    references: Sequence[str] = row["reference_answers"]
    if not references:
        return None
    if row["answer"] is None:
        return Verdict(None)
    try:
        return judge(row["answer"] or "", references, options, _choices(row))
    except OutsideDomainError as error:
        raise MidsightError(
            f"The reference {', '.join(map(repr, references[:3]))} of sample {row['sample_id']!r} (row "
            f"{row['input_index']}) is outside what the judge takes: {error}; correct it, or choose another ",
            Option("judge"), ".",
        ) from error  # fmt: skip


def _choices(row: Mapping[str, Any]) -> dict[str, str]:
    """The text of each option of a question by its letter, from the columns that hold them."""
    return {letter: cell_text(choice) for letter, choice in choices_of({name: _decoded(row[name]) for name in row})}


def _decoded(cell: Any) -> Any:
    """A list or an object that the run stores as JSON text; any other cell as it is."""
    try:
        return json.loads(cell) if isinstance(cell, str) and cell.startswith(("[", "{")) else cell
    except ValueError:
        return cell


def _different_from_pope(rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict | None]) -> int:
    pope = JUDGES["yes_no:pope"]
    return sum(
        verdict is not None
        and row["answer"] is not None
        and verdict.right != pope(row["answer"] or "", row["reference_answers"], JudgeOptions()).right
        for row, verdict in zip(rows, verdicts, strict=True)
    )


def _reason(verdict: Verdict | None, absent: str, *, abstained: bool) -> str | None:
    if verdict is None:
        return ABSTAINED if abstained else absent
    return UNREAD if verdict.right is None else None


def _as_table(ids: Any, verdicts: Sequence[Verdict | None], reasons: Sequence[str | None]) -> pa.Table:
    values = [verdict and verdict.right for verdict in verdicts]
    scores = [verdict and verdict.score for verdict in verdicts]
    return pa.table([ids, pa.array(values, pa.bool_()), pa.array(scores, pa.float64()), pa.array(reasons, pa.string())],
                    schema=LABEL_SCHEMA)  # fmt: skip


def _counts(verdicts: Sequence[Verdict | None], reasons: Sequence[str | None]) -> dict[str, int]:
    rights = [verdict.right for verdict in verdicts if verdict]
    abstained = reasons.count(ABSTAINED)
    return {
        "right": rights.count(True),
        "wrong": rights.count(False),
        "undecided": rights.count(None),
        "without_reference": verdicts.count(None) - abstained,
        "abstained": abstained,
    }


def _changed(options: JudgeOptions) -> dict[str, str]:
    default = JudgeOptions()
    return {
        name: str(getattr(options, name)).lower()
        for name in ("undecided", "lenient", "threshold", "tolerance")
        if getattr(options, name) != getattr(default, name)
    }


def parse_undecided(text: str | None) -> Undecided | None:
    """The value of `--undecided`; raises MidsightError."""
    if text is None or text == "null" or text == "wrong":
        return text
    raise MidsightError(Option("undecided", text), " is unknown; choose null or wrong.")

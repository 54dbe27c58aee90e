"""The samples that a probe learns from and is tested on, and how they are divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from midsight.errors import MidsightError, Option, counted
from midsight.labels.choice import reference_choice
from midsight.labels.numbers import read_number
from midsight.labels.yes_no import reference_yes_no
from midsight.probes.crossval import Design, cross_validation, held_out_test
from midsight.probes.folds import deal_folds, hold_out, joint_groups, permuted_labels
from midsight.store.annotations import LabelRecord, read_label, read_label_record
from midsight.store.reader import Run

ANSWER_KIND = "answer_kind"
"""The default stratum: what the reference answers are."""
FEWEST_SAMPLES = 20
FEWEST_MOVABLE = 0.8
"""Smallest share of samples that permutations must be able to move; below, strata are given up."""


@dataclass(frozen=True)
class Samples:
    """The samples of a run that have a label."""

    run: Run
    """The run."""
    ids: tuple[str, ...]
    """In dataset order."""
    y: np.ndarray
    """0 or 1, float32 [n]."""
    table: pa.Table
    """Their columns without vectors."""
    record: LabelRecord
    """How the label was made."""
    unlabelled: int
    """Samples of the run without a value."""
    notes: tuple[str, ...] = ()
    """What else a reader of the finding must know about them."""


def labelled_samples(run: Run, label: str) -> Samples:
    """The samples of `run` with a value of `label`; raises MidsightError if there is no such label, or no value."""
    record = read_label_record(run.path, run.spec.run_id, label)
    stored = read_label(run.path, run.spec.run_id, label)
    values = dict(zip(stored["sample_id"].to_pylist(), stored["value"].to_pylist(), strict=True))
    table = run.table()
    found = [values.get(sample_id) for sample_id in table["sample_id"].to_pylist()]
    if not found:
        raise MidsightError(f"{run.path} holds no samples; extract some first.")
    mask = np.array([value is not None for value in found])
    if not mask.any():
        raise MidsightError(
            f"The label {label} of {run.path} has no value for any sample ({len(found):,}); choose another ",
            Option("label"), ", or another judge.",
        )  # fmt: skip
    kept = table.filter(pa.array(mask))
    y = np.array([value for value in found if value is not None], np.float32)
    return Samples(run, tuple(kept["sample_id"].to_pylist()), y, kept, record, int((~mask).sum()))


def with_vectors(samples: Samples, columns: Sequence[str]) -> Samples:
    """Those of the samples that have a vector in each of the columns; only in imported runs one may be missing."""
    run = samples.run
    if run.spec.imported is None:
        return samples
    missing: dict[str, set[str]] = {}
    for name in columns:
        for batch in run.vector_batches(name) if name in run.spec.vectors else ():
            lost = np.isnan(batch.vectors[:, 0])
            missing.setdefault(name, set()).update(one for one, is_lost in zip(batch.sample_ids, lost, strict=True)
                                                   if is_lost)  # fmt: skip
    mask = np.array([not any(one in ids for ids in missing.values()) for one in samples.ids], bool)
    if mask.all():
        return samples
    worst = max(missing, key=lambda name: len(missing[name]))
    left_out = (
        f"{int((~mask).sum())} samples of {run.path} have no vector in one of the columns, most of them in {worst}"
    )
    if not mask.any():
        raise MidsightError(f"{left_out}, and none is left; choose other ", Option("columns"), ".")
    note = f"{left_out}, and are left out of all columns; without that column they would stay."
    kept = samples.table.filter(pa.array(mask))
    return replace(samples, ids=tuple(kept["sample_id"].to_pylist()), y=samples.y[mask], table=kept, notes=(note,))


@dataclass(frozen=True)
class Division:
    """Samples of one or two runs, divided into folds. Arrays and lists are sorted by fold."""

    design: Design
    """Folds, splits, labels and groups."""
    parts: tuple[tuple[Run, tuple[str, ...]], ...]
    """Runs with the ids that are read from each, one after the other."""
    table: pa.Table
    """Columns without vectors that all runs have."""
    images: np.ndarray
    """Number of the image, int64 [n]."""
    strata: dict[str, list[str]]
    """By stratum column, the value of each sample."""
    warnings: list[str] = field(default_factory=list)
    """What a reader of the finding must know."""


def divide(
    samples: Samples,
    other: Samples | None,
    *,
    group_by: Sequence[str],
    strata: Sequence[str],
    folds: int,
    holdout: float | None,
    permutations: int,
    seed: int,
) -> Division:
    """Divides samples into folds by group.

    Args:
        samples: The samples to learn from.
        other: Samples of another run, to test on.
        group_by: Columns whose values keep samples together.
        strata: Columns within which results are also given.
        folds: Number of folds.
        holdout: Share of the groups to test on; None for cross-validation.
        permutations: How often labels are permuted.
        seed: Of the folds and the permutations.

    Returns:
        The division.

    Raises:
        MidsightError: There are too few samples, groups or labels of one kind, or a column is missing.
    """
    runs = [samples, *([other] if other else [])]
    table = _joint_table(runs, (*group_by, *strata))
    origin = np.concatenate([np.full(len(one.y), index) for index, one in enumerate(runs)])
    y = np.concatenate([one.y for one in runs])
    groups = joint_groups([[*map(str, table[name].to_pylist())] for name in group_by])
    _require_enough(samples, groups[origin == 0], folds, group_by)
    fold = np.full(len(y), folds, np.int64)
    train = origin == 0
    if holdout is not None:
        train = ~hold_out(y, groups, holdout, seed)
    fold[train] = deal_folds(y[train], np.unique(groups[train], return_inverse=True)[1], folds, seed + 1)
    _require_both(y[train], y[~train], samples.record.name, other)
    values = _strata_values(table, strata)
    order = np.argsort(fold, kind="stable")
    codes = joint_codes([*values.values()], len(y)) * 2 + origin
    labels, movable = permuted_labels(y, groups, codes, permutations, seed + 2)
    warnings = [*_notes(samples, other, table, origin)]
    if movable < FEWEST_MOVABLE and values:
        labels, movable = permuted_labels(y, groups, origin, permutations, seed + 2)
        warnings.append(
            "Labels are permuted without regard to strata, because too few groups have the same strata; p-values do "
            "not say that a column knows more than the stratum."
        )
    if movable < FEWEST_MOVABLE:
        warnings.append(
            f"Only {movable:.0%} of the samples are in groups of equal size, between which labels can be permuted; "
            "p-values are too large."
        )
    bounds = tuple(np.concatenate([[0], np.cumsum(np.bincount(fold))]).tolist())
    splits = cross_validation(folds) if train.all() else held_out_test(folds)
    first = int((origin == 0).sum())
    ids = [one for part in runs for one in part.ids]
    design = Design(order, bounds, splits, labels[:, order], groups[order])
    return Division(
        design=design,
        parts=(
            (samples.run, tuple(ids[row] for row in order if row < first)),
            *([(other.run, tuple(ids[row] for row in order if row >= first))] if other else []),
        ),
        table=table.take(pa.array(order)),
        images=joint_codes([table["image_id"].to_pylist()], len(y))[order],
        strata={name: [column[row] for row in order] for name, column in values.items()},
        warnings=warnings,
    )


def joint_codes(columns: Sequence[Sequence[object]], n: int) -> np.ndarray:
    """A number for each different combination of values, int64 [n]."""
    if not columns:
        return np.zeros(n, np.int64)
    texts = ["\0".join(map(str, values)) for values in zip(*columns, strict=True)]
    return np.unique(np.array(texts), return_inverse=True)[1].astype(np.int64)


def answer_kind(references: Sequence[str]) -> str:
    """What the reference answers are: yes or no, a number, a letter, or other text."""
    if not references:
        return "none"
    if all(reference_yes_no(one) is not None and not one.strip().isdigit() for one in references):
        return "yes or no"
    if all(read_number(one) is not None for one in references):
        return "number"
    if all(reference_choice(one, {}) is not None and one.strip(" ().:").isupper() for one in references):
        return "letter"
    return "text"


def _joint_table(runs: Sequence[Samples], needed: Sequence[str]) -> pa.Table:
    for one in runs:
        for name in needed:
            if name not in one.table.column_names:
                raise MidsightError(
                    f"{one.run.path} has no column {name!r}; it has {', '.join(one.table.column_names)}."
                )
    shared = [name for name in runs[0].table.column_names if all(name in one.table.column_names for one in runs)]
    return pa.concat_tables([one.table.select(shared) for one in runs], promote_options="permissive")


def _require_enough(samples: Samples, groups: np.ndarray, folds: int, group_by: Sequence[str]) -> None:
    n, positives, count = len(samples.y), int(samples.y.sum()), len(np.unique(groups))
    name, path = samples.record.name, samples.run.path
    if n < FEWEST_SAMPLES:
        raise MidsightError(
            f"{path} has {counted(n, 'sample')} with the label {name}; a probe needs at least {FEWEST_SAMPLES}, so "
            "extract more."
        )
    if not 0 < positives < n:
        raise MidsightError(
            f"The label {name} is {'true' if positives else 'false'} for all {n} samples of {path}, so there is "
            "nothing to tell apart; choose another ", Option("label"), ".",
        )  # fmt: skip
    if folds < 3:
        raise MidsightError(Option("folds", folds), " is too few; give 3 or more, so that inner folds are left.")
    if count < folds:
        raise MidsightError(
            f"The {n} samples are in {counted(count, 'group')} by {', '.join(group_by)}, and there are {folds} folds; "
            "give fewer ", Option("folds"), ", or extract more.",
        )  # fmt: skip
    if min(positives, n - positives) < folds:
        rarer = "true" if positives < n - positives else "false"
        raise MidsightError(
            f"The label {name} is {rarer} for only {min(positives, n - positives)} of {n} samples, fewer than the "
            f"{folds} folds; extract more samples, or give fewer ", Option("folds"), ".",
        )  # fmt: skip


def _require_both(train: np.ndarray, test: np.ndarray, label: str, other: Samples | None) -> None:
    if other and not 0 < test.sum() < len(test):
        raise MidsightError(
            f"The label {label} is {'true' if test.any() else 'false'} for every sample ({len(test):,}) of "
            f"{other.run.path}, so nothing can be tested there; choose another ", Option("evaluate_on"), ".",
        )  # fmt: skip
    for part, what in ((train, "learned from"), (test, "tested on")):
        if len(part) and not 0 < part.sum() < len(part):
            raise MidsightError(
                f"The samples that are {what} have one value of the label {label} only; use more samples, or change ",
                Option("holdout"), " or ", Option("seed"), ".",
            )  # fmt: skip


def _strata_values(table: pa.Table, strata: Sequence[str]) -> dict[str, list[str]]:
    """The strata that were asked for, and the kind of the reference answers if there are several."""
    values = {name: [str(value) for value in table[name].to_pylist()] for name in strata}
    kinds = [answer_kind(references) for references in table["reference_answers"].to_pylist()]
    return {ANSWER_KIND: kinds, **values} if len({*kinds}) > 1 and ANSWER_KIND not in values else values


def _notes(samples: Samples, other: Samples | None, table: pa.Table, origin: np.ndarray) -> list[str]:
    notes = []
    for one in (samples, *([other] if other else [])):
        if one.unlabelled:
            left_out = counted(one.unlabelled, "sample is", "samples are")
            notes.append(f"Without a value of the label, {left_out} left out of {one.run.path}.")
        notes += one.notes
    if other:
        images = np.array(table["image_id"].to_pylist())
        shared = len({*images[origin == 0]} & {*images[origin == 1]})
        if shared:
            both = counted(shared, "image is", "images are")
            notes.append(f"{both} in both runs, so the test is not on new images only.")
    return notes

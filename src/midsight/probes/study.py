"""The whole study of one label: every column probed, next to what is known without a probe."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from midsight.errors import MidsightError, Option
from midsight.memory import free_memory
from midsight.probes.baselines import baselines, confidence_features
from midsight.probes.crossval import ColumnFit, fit_column
from midsight.probes.finding import CurvePoint, Finding, HalpResult, SkippedColumn, StratumResult
from midsight.probes.sampling import Division, Samples, divide, joint_codes, labelled_samples, with_vectors
from midsight.probes.scored import (
    CONFIDENCE_NAME,
    CROSS_VALIDATED,
    Evaluation,
    Scored,
    scored_baseline,
    scored_choice,
    scored_confidence,
    scored_fit,
    surest_first,
)
from midsight.store.annotations import validate_name
from midsight.store.reader import Run
from midsight.store.vectors import same_as

METHODS = ("ridge", "logistic", "mlp")
PACKAGES = ("numpy", "scipy", "scikit-learn")
"""Packages whose versions a finding records."""
PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("label", pa.bool_(), nullable=False),
        pa.field("fold", pa.int64(), nullable=False),
        pa.field("probe", pa.float64(), nullable=False),
        pa.field("confidence", pa.float64()),
    ]
)
"""Probabilities that the label is true, of probes that were not trained on the sample's group."""
CONSTANT = "all rows are equal (constant), so that nothing can be learned from it"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a label is probed."""

    label: str
    """The label."""
    name: str | None = None
    """Name of the finding; by default the label's."""
    columns: tuple[str, ...] | None = None
    """Columns to probe, or positions; None for every vector column."""
    strata: tuple[str, ...] = ()
    """Columns within which results are also given."""
    group_by: tuple[str, ...] = ("image_id",)
    """Columns whose values keep samples together."""
    folds: int = 5
    """Number of folds."""
    holdout: float | None = None
    """Share of the groups to test on; None for cross-validation."""
    permutations: int = 199
    """How often labels are permuted."""
    seed: int = 0
    """The seed that draws folds and permutations."""
    methods: tuple[str, ...] = ("ridge",)
    """`ridge` is always there; also `logistic` and `mlp`, for named columns."""
    halp: bool = False
    """Whether to show what the paper's recipe gives for the named columns."""


@dataclass(frozen=True)
class ColumnProbe:
    """A column's probe."""

    fit: ColumnFit
    """Cross-validation, and the probe trained on all that may train."""
    image_only: bool
    """Whether its vectors are equal for all questions on an image."""


@dataclass(frozen=True)
class Study:
    """A finding, and the probes that it is of."""

    finding: Finding
    """The results."""
    probes: Mapping[str, ColumnProbe]
    """By column."""
    division: Division
    """The samples."""
    predictions: pa.Table
    """As in PREDICTION_SCHEMA, a row for each tested sample, sorted by fold."""


Progress = Callable[[int, int], None]
"""Called with the number of columns that are done, and of all."""


def study(run: Run, options: StudyOptions, other: Run | None = None, on_progress: Progress = lambda *_: None) -> Study:
    """Probes a label of a run.

    Args:
        run: The run, with the label.
        options: How to probe.
        other: Another run with a label of the same name, to test on in place of cross-validation.
        on_progress: Called as columns are done.

    Returns:
        The finding and its probes.

    Raises:
        MidsightError: The label, a column or an option cannot be used; the sentence says why.
    """
    _require_sense(run, options, other)
    columns = chosen_columns(run, options.columns)
    samples = with_vectors(labelled_samples(run, options.label), columns)
    other_samples = with_vectors(labelled_samples(other, options.label), columns) if other else None
    division = divide(
        samples,
        other_samples,
        group_by=options.group_by,
        strata=options.strata,
        folds=options.folds,
        holdout=options.holdout,
        permutations=options.permutations,
        seed=options.seed,
    )
    with threadpool_limits(1):  # more threads than columns side by side would wait for each other
        probes = _probe_columns(division, columns, options.columns or (), on_progress)
        extra = _other_methods(division, probes, options)
        finding, predictions = _conclude(samples, other_samples, division, probes, extra, columns, options)
    if options.halp:
        finding = replace(finding, halp=_as_halp(samples, [*probes], options.seed))
    return Study(finding, probes, division, predictions)


def chosen_columns(run: Run, asked: Sequence[str] | None) -> list[str]:
    """The vector columns that `asked` names, each by its name or by its position; all of them by default."""
    if not run.vector_columns:
        raise MidsightError(f"{run.path} holds no vectors; extract it with other ", Option("positions"), ".")
    if asked is None:
        return [*run.vector_columns]
    found: list[str] = []
    for name in asked:
        beginnings = (f"{name}.", f"{name}_representation.")
        mine = [column for column in run.vector_columns if column == name or column.startswith(beginnings)]
        if not mine:
            raise MidsightError(f"{run.path} has no vector column {name!r}; it has {', '.join(run.vector_columns)}.")
        found += [column for column in mine if column not in found]
    return found


def _require_sense(run: Run, options: StudyOptions, other: Run | None) -> None:
    if options.name is not None:
        validate_name(options.name)
    if not options.group_by:
        raise MidsightError(Option("group_by"), " names no column; give one, like image_id.")
    if options.seed < 0:
        raise MidsightError(Option("seed", options.seed), " is negative; give 0 or more.")
    if other is not None and other.spec.run_id == run.spec.run_id:
        raise MidsightError(Option("evaluate_on", str(other.path)), " is the run that the probes learn from; leave it "
                            "out, and folds or ", Option("holdout"), " test within the run.")  # fmt: skip
    if options.holdout is not None and not 0.05 <= options.holdout <= 0.9:
        raise MidsightError(Option("holdout", options.holdout), " is not a share from 0.05 to 0.9.")
    if options.holdout is not None and other is not None:
        raise MidsightError(Option("holdout"), " and ", Option("evaluate_on"), " are two tests; give one of them.")
    for name in options.methods:
        if name not in METHODS:
            raise MidsightError(Option("methods", name), f" is not a method; choose from {', '.join(METHODS)}.")
    if options.columns is None and (options.halp or {*options.methods} - {"ridge"}):
        what = Option("halp", True) if options.halp else Option("methods", ",".join(options.methods))
        raise MidsightError(what, " is for chosen columns, because it takes minutes for each; name them with ",
                            Option("columns"), ".")  # fmt: skip
    if options.permutations < 0:
        raise MidsightError(Option("permutations", options.permutations), " is negative; give 0 or more.")


def _probe_columns(
    division: Division, columns: Sequence[str], named: Sequence[str], on_progress: Progress
) -> dict[str, ColumnProbe]:
    """The probes of columns that are not constant, several columns at a time, each in one thread.

    A constant column that is among the `named` ends the work.
    """
    probes: dict[str, ColumnProbe] = {}
    on_progress(0, len(columns))
    with ThreadPoolExecutor(_workers(division, columns)) as pool:
        found = pool.map(lambda name: probe_column(division, name), columns)
        for done, (name, probe) in enumerate(zip(columns, found, strict=True), 1):
            if probe is not None:
                probes[name] = probe
            elif name in named:
                pool.shutdown(wait=False, cancel_futures=True)
                raise MidsightError(f"In the column {name}, {CONSTANT}; leave it out of ", Option("columns"), ".")
            on_progress(done, len(columns))
    if not probes:
        raise MidsightError(f"Every column is constant: in each of {', '.join(columns)}, {CONSTANT}.")
    return probes


def probe_column(division: Division, name: str) -> ColumnProbe | None:
    """The probe of one column; None if it is constant."""
    features = read_column(division, name)
    if all(same_as(features[start : start + 1024], features[0]) for start in range(0, len(features), 1024)):
        return None
    image_only = _is_image_only(features, division.images)
    return ColumnProbe(fit_column(features, division.design), image_only)


def read_column(division: Division, name: str) -> np.ndarray:
    """The vectors of the samples, float32 [n, width], sorted by fold."""
    width = division.parts[0][0].spec.vectors[name]
    features = np.empty((division.design.bounds[-1], width), np.float32)
    start = 0
    for run, ids in division.parts:
        if run.spec.vectors.get(name) != width:
            raise MidsightError(f"{run.path} has no vector column {name} of width {width}; choose others with ",
                                Option("columns"), ".")  # fmt: skip
        run.matrix(name, samples=ids, out=features[start : start + len(ids)])
        start += len(ids)
    return features


def _other_methods(division: Division, probes: Mapping[str, ColumnProbe], options: StudyOptions) -> list[Scored]:
    """The scores of logistic and network probes, if they were asked for."""
    if not {*options.methods} - {"ridge"}:
        return []
    from midsight.probes.methods import score_logistic, score_network

    found = []
    for name, probe in probes.items():
        if "logistic" in options.methods:
            features = read_column(division, name)
            found.append(score_logistic(name, features, division.design, image_only=probe.image_only))
        if "mlp" in options.methods:
            features = read_column(division, name)
            found.append(score_network(name, features, division.design, options.seed, image_only=probe.image_only))
    return found


def _as_halp(samples: Samples, columns: Sequence[str], seed: int) -> tuple[HalpResult, ...]:
    from midsight.probes.methods import score_as_halp

    images = joint_codes([samples.table["image_id"].to_pylist()], len(samples.y))
    return tuple(
        score_as_halp(name, samples.run.matrix(name, samples=samples.ids), samples.y, images, seed) for name in columns
    )


def _is_image_only(features: np.ndarray, images: np.ndarray) -> bool:
    """Whether the vectors of questions on one image are equal, judged by the first images with several questions."""
    shared = np.flatnonzero(np.bincount(images) > 1)[:100]
    return len(shared) > 0 and all(same_as(rows, rows[0]) for rows in (features[images == image] for image in shared))


def _workers(division: Division, columns: Sequence[str]) -> int:
    """How many columns fit into half of the free memory, at most one for each core."""
    run, n = division.parts[0][0], division.design.bounds[-1]
    width = max(run.spec.vectors[name] for name in columns)
    each = 4 * (n * width + 8 * width * min(width, n) + n * (len(division.design.labels) + 2 * len(columns)))
    room = int(free_memory() * 0.5 // each)
    return max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                      len(columns), room))  # fmt: skip


def _conclude(
    samples: Samples,
    other: Samples | None,
    division: Division,
    probes: Mapping[str, ColumnProbe],
    extra: Sequence[Scored],
    columns: Sequence[str],
    options: StudyOptions,
) -> tuple[Finding, pa.Table]:
    design, run = division.design, samples.run
    found = baselines(division.table, division.strata)
    confidence = confidence_features(found)
    scored = [scored_fit(name, probe.fit, image_only=probe.image_only) for name, probe in probes.items()]
    scored += extra
    picked: tuple[str, ...] = ()
    if len(probes) > 1:
        choice, picked = scored_choice({name: probe.fit for name, probe in probes.items()}, design)
        scored.append(choice)
    scored += [scored_baseline(one, design) for one in found]
    if confidence is not None:
        scored.append(scored_confidence(confidence, design))
    widening = CROSS_VALIDATED if design.tested.all() else 1.0
    evaluation = Evaluation(scored, design, division.strata, confidence, widening)
    results = {id(one): result for one, result in zip(scored, evaluation.results(), strict=True)}
    strata = evaluation.strata_results()
    y = design.y[design.tested]
    finding = Finding(
        name=options.name or options.label,
        run=str(run.path),
        run_id=run.spec.run_id,
        model=run.spec.model.name,
        model_fingerprint=run.spec.model.fingerprint,
        tested_on=str(other.run.path) if other else "held-out groups" if options.holdout else "cross-validation",
        label=options.label,
        label_source=samples.record.source,
        n=len(design.y),
        tested=len(y),
        positives=int(y.sum()),
        base_rate=float(y.mean()),
        groups=len(np.unique(design.groups)),
        group_by=options.group_by,
        strata=tuple(strata),
        folds=options.folds,
        seed=options.seed,
        permutations=options.permutations,
        interval_widening=widening,
        columns=tuple(results[id(one)] for one in scored if not one.baseline and one.name != "chosen"),
        chosen=next((results[id(one)] for one in scored if one.name == "chosen"), None),
        chosen_columns=picked,
        baselines=tuple(results[id(one)] for one in scored if one.baseline),
        halp=(),
        skipped=tuple(SkippedColumn(column=name, reason=CONSTANT) for name in columns if name not in probes),
        abstention=_abstention(scored, division),
        warnings=(*division.warnings, *_one_class_warnings(strata), *_confidence_warning(confidence)),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    )
    return finding, _predictions(scored, evaluation, division)


def _predictions(scored: Sequence[Scored], evaluation: Evaluation, division: Division) -> pa.Table:
    """What the reported probe and the model's confidence say of each tested sample, as in PREDICTION_SCHEMA."""
    design, tested = division.design, division.design.tested
    probe = next((one for one in scored if one.name == "chosen"), scored[0])
    confidence = next((one for one in scored if one.name == CONFIDENCE_NAME), None)
    owners = [(sample_id, run.spec.run_id) for run, ids in division.parts for sample_id in ids]
    folds = np.repeat(np.arange(len(design.bounds) - 1), np.diff(design.bounds))
    kept = [owner for owner, is_tested in zip(owners, tested, strict=True) if is_tested]
    return pa.table(
        [
            [sample_id for sample_id, _ in kept],
            [run_id for _, run_id in kept],
            design.y[tested].astype(bool),
            folds[tested],
            evaluation.probability(probe),
            [None] * len(kept) if confidence is None else evaluation.probability(confidence),
        ],
        schema=PREDICTION_SCHEMA,
    )


def _abstention(scored: Sequence[Scored], division: Division) -> tuple[CurvePoint, ...]:
    tested = division.design.tested
    certainty = next((one.raw[tested] for one in scored if one.name == "first_token_max"), None)
    if certainty is None:
        return ()
    points = surest_first(division.design.y[tested], certainty)
    return tuple(CurvePoint(answered=share, accuracy=accuracy) for share, accuracy in points)


def _one_class_warnings(strata: Sequence[StratumResult]) -> list[str]:
    """One sentence for each stratum column in which values hold one class only."""
    found: dict[str, list[StratumResult]] = {}
    for one in strata:
        if one.positives in (0, one.n):
            found.setdefault(one.stratum, []).append(one)
    sentences = []
    for name, alike in found.items():
        first, count = alike[0], sum(one.stratum == name for one in strata)
        more = "" if len(alike) == 1 else f", and {len(alike)} of {count} values of {name} hold one class only"
        sentences.append(
            f"Every sample with {name} {first.value!r} ({first.n:,}) has the label "
            f"{'true' if first.positives else 'false'}{more}; that alone tells them apart from the others, so look at "
            "the results within strata."
        )
    return sentences


def _confidence_warning(confidence: np.ndarray | None) -> list[str]:
    if confidence is not None:
        return []
    return ["The run has no answers with their probabilities, so there is no confidence of the model to compare with."]

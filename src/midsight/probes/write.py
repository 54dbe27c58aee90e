"""Writes a study into its run: result.json, tables, figures and fitted probes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midsight.buckets.path import Place
from midsight.probes.crossval import Design
from midsight.probes.figure import auroc_by_layer
from midsight.probes.finding import Finding
from midsight.probes.stacking import fit_logistic
from midsight.probes.study import ColumnProbe, Study
from midsight.probes.tables import as_markdown, scores_csv, strata_csv
from midsight.store.annotations import read_label_record
from midsight.store.findings import PREDICTIONS, write_finding
from midsight.store.probe import Probe, ProbeOrigin, probe_files
from midsight.store.reader import Run
from midsight.store.typed_json import to_json


def write_study(run: Run, study: Study) -> Place:
    """Writes a study into the run folder, in place of a finding of the same name, and returns its folder."""
    finding, drawing = study.finding, auroc_by_layer(study.finding)
    files = {
        "columns.csv": scores_csv([*finding.columns, *([finding.chosen] if finding.chosen else [])]).encode(),
        "baselines.csv": scores_csv(finding.baselines).encode(),
        "strata.csv": strata_csv(finding).encode(),
        "finding.md": as_markdown(finding).encode(),
        "auroc.svg": drawing.svg(f"AUROC by layer of {finding.label}").encode(),
        "auroc.png": drawing.png(),
        PREDICTIONS: _as_parquet(study.predictions),
        **{f"probe/{name}": data for name, data in _probe_files(run, study).items()},
    }
    return write_finding(run.path, finding.name, to_json(finding), files)


def fitted_probe(name: str, probe: ColumnProbe, design: Design, label: str) -> Probe:
    """The probe of a column as users load it, calibrated on scores of rows that it was not trained on."""
    fit = probe.fit
    held_out = fit.scores if design.tested.all() else fit.training_scores[0]  # test labels stay out of the probe
    rows = np.isfinite(held_out)
    (slope,), intercept = fit_logistic(held_out[rows, None].astype(np.float64), design.y[rows])
    weight = fit.weights.coefficients[:, 0].astype(np.float64)
    return Probe(
        column=name,
        label=label,
        shift=fit.shift,
        weight=weight * fit.scale,
        slope=float(slope),
        intercept=float(intercept + slope * float(fit.weights.intercepts[0])),
        facts={"penalty": fit.penalty, "image_only": probe.image_only},
    )


def default_column(finding: Finding) -> str:
    """The column that inner folds chose most often, or the only one."""
    counted = Counter(finding.chosen_columns or [one.column for one in finding.columns])
    return counted.most_common(1)[0][0]


def _as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _probe_files(run: Run, study: Study) -> dict[str, bytes]:
    finding, design = study.finding, study.division.design
    probes = {name: fitted_probe(name, probe, design, finding.label) for name, probe in study.probes.items()}
    facts = {
        "label": finding.label,
        "label_source": finding.label_source,
        "label_options": dict(read_label_record(run.path, run.spec.run_id, finding.label).options),
        "run_id": finding.run_id,
        "dataset_sha256": run.spec.dataset.sha256,
        "model": finding.model,
        "model_fingerprint": finding.model_fingerprint,
        "trained_on": int(design.bounds[max(max(split.train) for split in design.splits) + 1]),
        "midsight_version": finding.midsight_version,
        "created": finding.created,
    }
    return probe_files(probes, default_column(finding), ProbeOrigin.of(run.spec), facts)

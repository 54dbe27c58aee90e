"""What a report says of a run: the summary, which is also its JSON."""

import csv
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import midsight
from midsight.analysis import Run
from midsight.cli import app
from midsight.errors import MidsightError
from midsight.probes.metrics import brier
from midsight.probes.study import StudyOptions, study
from midsight.reports.page.content import Report, Samples
from midsight.reports.page.summary.choice import ReportOptions
from midsight.reports.page.summary.collect import report_of
from midsight.reports.page.summary.samples import MOST_SAMPLES, shown_rows
from midsight.store.findings import PREDICTIONS, finding_folder, read_predictions
from midsight.store.spec import RiskSpec
from support.made_up import QUERY_0, make_record, make_spec, write_run
from support.planted import QUERY, write_planted
from support.reported import write_reported


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """90 questions on 30 pictures, labelled and probed."""
    run = write_reported(tmp_path_factory.mktemp("reported"), failures=4)
    run.label("yes_no")
    run.probe(columns=[QUERY.format(0), QUERY.format(1), "vision_token"], permutations=9, strata=["kind"])
    return run


def summary_of(run, **options) -> Any:
    return report_of(run, ReportOptions(**options))


@pytest.fixture(scope="module")
def report(run):
    return summary_of(run)


def test_counts_and_failures_by_reason(report):
    assert (report.counts.stored, report.counts.failed, report.counts.images) == (90, 4, 30)
    (kind,) = report.failures
    assert (kind.count, kind.sample_id) == (4, "s90")
    assert report.spec["model"]["name"] == "made-up"
    assert report.spec["prompt"]["rendered"].startswith("<|user|>")


def test_accuracy_is_that_of_the_label_for_all_and_by_column(run, report):
    values = run.labels("correct")
    kinds = run.table()["kind"].to_pylist()
    by_column = {one.column: {value.value: value.share for value in one.values} for one in report.label.accuracy}
    assert {*by_column} == {"", "kind", "size"}
    assert (by_column[""]["all samples"].right, by_column[""]["all samples"].asked) == (sum(values), 90)
    dogs = [value for value, kind in zip(values, kinds, strict=True) if kind == "dog"]
    assert (by_column["kind"]["dog"].right, by_column["kind"]["dog"].asked) == (sum(dogs), len(dogs))
    table = report.label.record.table
    assert table.yes_yes + table.no_no == sum(values)
    assert report.label.figures["accuracy"] == pytest.approx(sum(values) / 90)


def test_risk_and_curves_are_of_probes_that_did_not_see_the_sample(run, report):
    finding = report.finding.finding
    predictions = read_predictions(run.path, "correct")
    assert predictions is not None
    y, probe = np.array(predictions["label"].to_pylist()), np.array(predictions["probe"].to_pylist())
    assert brier(y, probe) == pytest.approx(finding.chosen.brier, abs=1e-12)
    risk = dict(zip(report.samples.sample_id, report.samples.risk, strict=True))
    assert [risk[one] for one in predictions["sample_id"].to_pylist()] == pytest.approx(1 - probe)
    assert "trained on other groups of image_id" in report.samples.risk_source
    images = dict(zip(run.sample_ids(), run.table()["image_id"].to_pylist(), strict=True))
    folds = {}
    for one, fold in zip(predictions["sample_id"].to_pylist(), predictions["fold"].to_pylist(), strict=True):
        assert folds.setdefault(images[one], fold) == fold
    curves = {one.score: one for one in report.finding.curves}
    assert sum(point.n for point in curves["probe"].calibration) == 90
    assert curves["confidence"].answered[-1].accuracy == pytest.approx(y.mean())


@pytest.mark.slow
def test_stored_predictions_find_nothing_where_there_is_nothing(tmp_path):
    run = Run.of(write_planted(tmp_path / "run", signal=0, image_effect=0, layers=4, width=48))
    run.label("yes_no")
    done = study(run, StudyOptions(label="correct", permutations=0))
    y = np.array(done.predictions["label"].to_pylist())
    scaled = {name: (run.matrix(name) - one.fit.shift) * one.fit.scale for name, one in done.probes.items()}
    in_sample = [
        roc_auc_score(run.labels("correct"), scaled[name] @ one.fit.weights.coefficients[:, 0])
        for name, one in done.probes.items()
    ]
    assert max(in_sample) > 0.68
    assert roc_auc_score(y, done.predictions["probe"].to_pylist()) < 0.6


def test_pictures_are_those_of_the_run_each_once(run, report):
    samples = report.samples
    assert len(samples.pictures) == len({*samples.pictures}) == 30
    assert all(picture.startswith("data:image/webp;base64,") for picture in samples.pictures)
    by_image = dict(zip(samples.image, samples.picture, strict=True))
    assert sorted(by_image.values()) == list(range(30))
    assert report.notes == ()


def test_a_picture_that_changed_or_went_is_not_shown(tmp_path):
    run = write_reported(tmp_path, images=4)
    (tmp_path / "picture-001.png").write_bytes((tmp_path / "picture-002.png").read_bytes())
    report = summary_of(run)
    shown = zip(report.samples.image, report.samples.picture, strict=True)
    assert [name for name, place in shown if place is None] == ["picture-001.png"] * 3
    (note,) = report.notes
    assert note.startswith("1 picture is missing: The image ")
    assert note.endswith("picture-001.png has other pixels than the run saw.")
    (tmp_path / "picture-003.png").unlink()
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(moved / file.name)
    (note,) = summary_of(run).notes
    assert note.startswith("4 pictures are missing")
    assert len(summary_of(run, images=moved).samples.pictures) == 2


def test_the_map_is_of_the_findings_column_and_says_what_it_rests_on(run, report):
    assert report.map.column == QUERY.format(1)
    assert report.map.image_only is False
    of_image = summary_of(run, column="vision_token").map
    assert (of_image.image_only, of_image.images, len(of_image.x)) == (True, 30, 90)
    assert 0 < of_image.explained[1] <= of_image.explained[0] < 1


def test_every_column_of_the_samples_has_a_value_for_each(report):
    columns = [getattr(report.samples, field.name) for field in fields(Samples)]
    lengths = {len(one) for one in columns if isinstance(one, tuple) and one is not report.samples.pictures}
    assert lengths == {90}
    assert report.samples.total == 90
    assert {len(values) for values in report.samples.extras.values()} == {90}
    assert {*report.samples.extras} == {"kind", "size"}


def test_large_runs_are_thinned_evenly():
    assert shown_rows(0).tolist() == []
    assert shown_rows(3).tolist() == [0, 1, 2]
    rows = shown_rows(1_000_000)
    assert len(rows) == MOST_SAMPLES
    assert (rows[0], rows[-1], np.diff(rows).max()) == (0, 999_999, 21)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label": "nothing"}, "has no label 'nothing'; it has correct"),
        ({"findings": "nothing"}, "has no finding 'nothing'; it has correct"),
        ({"column": "nothing"}, "has no vector column 'nothing'"),
        ({"risk": "absent.csv"}, "absent.csv does not exist"),
    ],
)
def test_what_the_run_does_not_have_is_one_sentence(run, tmp_path, options, sentence):
    with pytest.raises(MidsightError, match=sentence):
        run.report(tmp_path / "a.html", **options)
    assert not (tmp_path / "a.html").exists()


def test_a_table_of_risks_takes_the_findings_place(run, tmp_path):
    table = tmp_path / "risks.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["sample_id", "risk"], ["s0", 0.25], ["s1", ""], ["other", 1]])
    samples = summary_of(run, risk=table).samples
    assert samples.risk[:3] == (0.25, None, None)
    assert str(table) in samples.risk_source
    table.write_text("sample_id,risk\ns0,1.5\n")
    with pytest.raises(MidsightError, match=r'holds the risk "1\.5", which is not a number from 0 to 1'):
        summary_of(run, risk=table)


def test_a_risk_that_the_extraction_stored_is_shown_without_a_finding(tmp_path):
    risks = RiskSpec(
        probe="runs/a/probe", probe_sha256="a", column=QUERY_0, label="correct", of="false", abstain_above=None
    )
    spec = make_spec(risks=risks)
    write_run(tmp_path, [make_record(row, spec, risk=row / 4) for row in range(3)], spec)
    samples = summary_of(midsight.open_run(tmp_path)).samples
    assert samples.risk == (0.0, 0.25, 0.5)
    assert "label correct is false, stored before the answer, from the probe runs/a/probe" in samples.risk_source
    assert "looks too good" in samples.risk_source


@pytest.mark.slow
def test_a_finding_of_another_run_or_of_an_earlier_midsight_gives_no_risk(tmp_path):
    run = write_reported(tmp_path)
    run.label("yes_no")
    run.probe(columns=[QUERY.format(1)], permutations=0)
    (finding_folder(run.path, "correct") / PREDICTIONS).unlink()
    report = summary_of(run)
    assert report.samples.risk is None
    assert report.finding.curves == ()
    assert "stores no predictions" in report.notes[0]


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_of_hardly_any_samples_has_a_summary(tmp_path, rows, answers):
    spec = make_spec(answers=answers)
    unheard = dict.fromkeys(
        ("answer", "answer_token_ids", "answer_logprobs", "finish_reason", "first_token_entropy", "first_token_top_ids",
         "first_token_top_logprobs"),
    )  # fmt: skip
    write_run(tmp_path, [make_record(row, spec, **({} if answers else unheard)) for row in range(rows)], spec)
    report = summary_of(midsight.open_run(tmp_path))
    assert report.counts.stored == len(report.samples.sample_id) == rows
    assert (report.map, report.label, report.finding) == (None, None, None)
    assert (report.answers is None) == (report.samples.answer is None) == (not answers)


@pytest.mark.slow
def test_the_command_writes_page_and_json_and_replaces_only_its_own(run, tmp_path):
    page, summary = tmp_path / "deep" / "report.html", tmp_path / "report.json"
    call = ["report", str(run.path), "--out", str(page), "--json", str(summary)]
    for _ in range(2):
        done = CliRunner().invoke(app, call)
        assert (done.exit_code, done.output.splitlines()[-1]) == (0, f"Wrote {page}."), done.output
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    written = json.loads(summary.read_text(encoding="utf-8"))
    assert [*written] == [field.name for field in fields(Report)]
    assert written["samples"]["sample_id"] == run.sample_ids()
    refused = CliRunner().invoke(app, [*call[:3], str(run.path / "run.json")])
    assert refused.exit_code == 2
    assert "exists already and is not a report; choose another --out." in refused.output
    page.write_text("mine")
    with pytest.raises(MidsightError, match="is not a report"):
        run.report(page)


def test_every_key_of_the_json_is_documented(report):
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    parts = (report, report.counts, report.failures[0], report.vectors[0], report.answers, report.label,
             report.label.accuracy[0], report.label.accuracy[0].values[0], report.finding, report.finding.curves[0],
             report.finding.curves[0].calibration[0], report.finding.curves[0].answered[0], report.map,
             report.samples)  # fmt: skip
    names = {field.name for part in parts for field in fields(part)}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []

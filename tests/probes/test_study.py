"""Whole studies of made-up runs: results, files, and one sentence for what cannot be probed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_score
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import DamagedRunError, MidsightError
from midsight.labels.label import label_from_file, label_run
from midsight.probes.baselines import baselines
from midsight.probes.finding import HalpResult
from midsight.probes.study import StudyOptions, chosen_columns, study
from midsight.probes.tables import as_markdown, conclude
from midsight.probes.write import write_study
from midsight.store import open_run
from midsight.store.findings import finding_names, read_result
from midsight.store.probe import Probe, ProbeOrigin
from midsight.store.verify import verify_run
from support.planted import IMAGE, LAYERS, QUERY, write_planted

PLANTED = QUERY.format(1)


def labelled(path, **options):
    run = write_planted(path, **options)
    label_run(run, "yes_no")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """100 images, 4 questions each, a signal in query layer 1, and confidence that knows something."""
    return labelled(tmp_path_factory.mktemp("study") / "run", images=100)


@pytest.fixture(scope="module")
def done(run):
    """Its study, written."""
    found = study(run, StudyOptions(label="correct", strata=("kind",), permutations=39))
    return found, write_study(run, found)


def by_name(results):
    return {one.column: one for one in results}


def test_columns_are_named_placed_and_marked(done):
    finding = done[0].finding
    columns = by_name(finding.columns)
    assert {*columns} == {IMAGE, *(QUERY.format(layer) for layer in range(LAYERS))}
    assert (columns[PLANTED].layer, columns[PLANTED].position) == (1, "query_token")
    assert columns[IMAGE].image_only
    assert not columns[PLANTED].image_only


def test_the_planted_column_is_found_and_chosen(done):
    finding = done[0].finding
    columns = by_name(finding.columns)
    assert columns[PLANTED].auroc > 0.85
    assert columns[PLANTED].p_familywise == pytest.approx(1 / 40)
    assert columns[QUERY.format(0)].p_familywise > 0.05
    assert finding.chosen_columns == (PLANTED,) * 5
    assert finding.chosen is not None
    assert finding.chosen.p == pytest.approx(1 / 40)


def test_baselines_are_what_the_run_stores(run, done):
    baselines = by_name(done[0].finding.baselines)
    y = np.array(run_labels(run))
    top = np.array([row[0] for row in run.table()["first_token_top_logprobs"].to_pylist()])
    assert baselines["first_token_max"].auroc == pytest.approx(roc_auc_score(y, top), abs=1e-6)
    assert baselines["first_token_max"].method == "direct"
    assert baselines["answer_mean_logprob"].when == "after the answer"
    assert baselines["stratum: kind"].when == "without the model"
    assert baselines["confidence"].auroc == pytest.approx(baselines["first_token_max"].auroc, abs=0.03)
    assert {"first_token_entropy", "first_token_margin", "yes_no_margin", "question_words", "lengths"} <= {*baselines}


def test_first_tokens_are_baselines_also_where_nothing_was_answered(run):
    table = run.table().drop_columns(["answer", "answer_token_ids", "answer_logprobs", "finish_reason"])
    names = {one.name for one in baselines(table, {})}
    assert {"first_token_max", "first_token_entropy", "first_token_margin"} <= names
    assert names.isdisjoint({"yes_no_margin", "answer_mean_logprob"})


def run_labels(run):
    from midsight.analysis import Run

    return Run.of(run).labels("correct")


def test_a_probe_that_knows_more_adds_to_confidence_and_one_that_does_not_adds_nothing(done):
    columns = by_name(done[0].finding.columns)
    assert columns[PLANTED].gain_interval[0] > 0
    assert columns[PLANTED].minus_confidence_interval[0] > 0
    low, high = columns[QUERY.format(0)].gain_interval
    assert low < 0.02
    assert high > -0.02
    assert "is better than the model's own confidence" in " ".join(conclude(done[0].finding))


def test_results_within_strata_stand_beside_the_pooled_ones(done):
    finding = done[0].finding
    assert {(one.stratum, one.value) for one in finding.strata} == {("kind", "cat"), ("kind", "dog")}
    assert sum(one.n for one in finding.strata) == finding.tested == 400
    assert by_name(finding.columns)[PLANTED].within_strata["kind"] == pytest.approx(
        by_name(finding.columns)[PLANTED].auroc, abs=0.03
    )


def test_the_folder_has_results_tables_figures_and_probes(run, done):
    _, folder = done
    assert sorted(path.name for path in folder.iterdir()) == [
        "auroc.png", "auroc.svg", "baselines.csv", "columns.csv", "finding.md", "predictions.parquet", "probe",
        "result.json", "strata.csv",
    ]  # fmt: skip
    result = read_result(run.path, run.spec.run_id, "correct")
    assert {"label", "n", "positives", "groups", "folds", "seed", "versions", "columns", "baselines"} <= {*result}
    assert {"column", "layer", "position", "auroc", "auroc_interval", "p", "p_familywise"} <= {*result["columns"][0]}
    assert {*result["baselines"][0]} == {*result["columns"][0]}
    rows = [*csv.DictReader((folder / "columns.csv").read_text().splitlines())]
    assert [row["column"] for row in rows] == [*(one["column"] for one in result["columns"]), "chosen"]
    assert float(rows[0]["auroc"]) == result["columns"][0]["auroc"]
    with Image.open(folder / "auroc.png") as png:
        assert png.size == (1520, 920)
    svg = (folder / "auroc.svg").read_text()
    assert svg.count("<polyline") > 5
    assert "confidence" in svg
    assert finding_names(run.path) == ["correct"]


def test_every_field_of_result_json_is_documented(run):
    page = (Path(__file__).parents[2] / "docs" / "findings.md").read_text(encoding="utf-8")
    result = read_result(run.path, run.spec.run_id, "correct")
    fields = {
        *result,
        *result["columns"][0],
        *HalpResult.__dataclass_fields__,
        *result["strata"][0],
        *result["abstention"][0],
    }
    assert [name for name in fields if f"`{name}`" not in page] == []


def test_a_fitted_probe_scores_as_it_did_in_training(run, done):
    probe = Probe.load(done[1])
    assert probe.column == PLANTED
    assert probe.origin == ProbeOrigin.of(run.spec)
    assert probe.facts["label_source"] == "yes_no"
    assert np.array_equal(probe.risk(run.matrix(PLANTED)), 1 - probe.score(run.matrix(PLANTED)))
    scores = probe.score(run.matrix(PLANTED))
    y = np.array(run_labels(run))
    assert 0.85 < roc_auc_score(y, scores) < 1
    assert scores.mean() == pytest.approx(y.mean(), abs=0.05)
    new = write_planted(done[1].parent / "new", images=50, seed=9)
    label_run(new, "yes_no")
    assert roc_auc_score(run_labels(new), probe.score(new.matrix(PLANTED))) > 0.8
    with pytest.raises(MidsightError, match=r"reads vectors \[n, 12\], and these are \[3, 4\]"):
        probe.score(np.zeros((3, 4)))
    with pytest.raises(MidsightError, match="has no probe of 'x'; it has"):
        Probe.load(done[1] / "probe", "x")
    with pytest.raises(MidsightError, match="does not hold a probe"):
        Probe.load(done[1].parent)


def test_the_same_seed_gives_the_same_finding(run, done):
    again = study(run, StudyOptions(label="correct", strata=("kind",), permutations=39))
    assert again.finding.columns == done[0].finding.columns
    assert again.finding.baselines == done[0].finding.baselines


def test_held_out_groups_are_tested_once_and_without_widening(run):
    finding = study(run, StudyOptions(label="correct", holdout=0.3, permutations=0)).finding
    assert (finding.tested_on, finding.interval_widening) == ("held-out groups", 1.0)
    assert 100 <= finding.tested <= 140
    planted = by_name(finding.columns)[PLANTED]
    assert planted.auroc > 0.8
    assert planted.p is None


def test_another_run_is_tested_without_refitting(run, done, tmp_path):
    other = labelled(tmp_path / "other", images=30, seed=5, run_id="f" * 32)
    finding = study(run, StudyOptions(label="correct", permutations=9), other).finding
    assert finding.tested == 120
    fitted = Probe.load(done[1], PLANTED)
    direct = roc_auc_score(run_labels(other), fitted.score(other.matrix(PLANTED)))
    assert by_name(finding.columns)[PLANTED].auroc == pytest.approx(direct, abs=0.01)
    relabel(other, [int(not right) for right in run_labels(other)], "correct")
    reversed_labels = study(run, StudyOptions(label="correct", name="reversed", permutations=0), other)
    assert reversed_labels.finding.columns[1].auroc < 0.5
    calibrated = Probe.load(write_study(run, reversed_labels), PLANTED)
    scores, y = calibrated.score(run.matrix(PLANTED)), np.array(run_labels(run))
    assert roc_auc_score(y, scores) > 0.85
    assert scores.mean() == pytest.approx(y.mean(), abs=0.05)


def test_a_run_without_answers_is_probed_without_confidence(tmp_path):
    mute = write_planted(tmp_path / "mute", answers=False)
    rows = "".join(f"s{i},{i % 3 == 0}\n" for i in range(len(mute)))
    (tmp_path / "v.csv").write_text(f"sample_id,ok\n{rows}")
    label_from_file(mute, tmp_path / "v.csv", id_column="sample_id", column="ok")
    finding = study(mute, StudyOptions(label="correct", permutations=0)).finding
    assert finding.baseline("confidence") is None
    assert finding.columns[0].gain is None
    assert any("no answers" in warning for warning in finding.warnings)
    assert finding.abstention == ()


def relabel(run, values, name):
    rows = "".join(f"s{i},{value}\n" for i, value in enumerate(values))
    file = run.path.parent / f"{name}.csv"
    file.write_text(f"sample_id,ok\n{rows}")
    label_from_file(run, file, id_column="sample_id", column="ok", name=name)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1] * 400, "is true for all 400 samples of .* so there is nothing to tell apart"),
        ([""] * 400, r"has no value for any sample \(400\)"),
        ([1, 0, 1], "has 3 samples with the label odd; a probe needs at least 20"),
        ([1] * 3 + [0] * 397, "is true for only 3 of 400 samples, fewer than the 5 folds"),
        ([1, 0] * 10, "are in 5 groups by image_id, and there are 8 folds"),
    ],
)
def test_labels_that_cannot_be_probed_say_why_in_one_sentence(run, values, problem):
    relabel(run, values, "odd")
    folds = 8 if "8 folds" in problem else 5
    with pytest.raises(MidsightError, match=problem) as caught:
        study(run, StudyOptions(label="odd", folds=folds))
    assert str(caught.value).count(". ") == 0


def test_the_run_itself_is_no_other_run_and_one_class_there_tests_nothing(run, tmp_path):
    with pytest.raises(MidsightError, match="is the run that the probes learn from"):
        study(run, StudyOptions(label="correct"), open_run(run.path))
    other = labelled(tmp_path / "other", images=10, seed=5, run_id="f" * 32)
    relabel(other, [1] * 40, "correct")
    with pytest.raises(MidsightError, match=r"is true for every sample \(40\) of .*, so nothing can be tested there"):
        study(run, StudyOptions(label="correct"), other)


def test_columns_are_named_by_position_or_by_its_representation(run):
    for name in ("query_token", "query_token_representation"):
        assert chosen_columns(run, [name]) == [QUERY.format(layer) for layer in range(LAYERS)]
    assert chosen_columns(run, ["vision_token", PLANTED]) == [IMAGE, PLANTED]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"label": "none"}, "has no label 'none'; it has correct"),
        ({"columns": ("layer_9",)}, "has no vector column 'layer_9'; it has"),
        ({"strata": ("nope",)}, "has no column 'nope'; it has sample_id"),
        ({"folds": 2}, "folds=2 is too few"),
        ({"holdout": 1.5}, "holdout=1.5 is not a share from 0.05 to 0.9"),
        ({"permutations": -1}, "permutations=-1 is negative"),
        ({"seed": -1}, "seed=-1 is negative"),
        ({"group_by": ()}, "group_by names no column"),
        ({"name": "../x"}, "name='../x' is not a name"),
    ],
)
def test_options_that_cannot_be_used_say_why(run, options, problem):
    with pytest.raises(MidsightError, match=problem):
        study(run, StudyOptions(**{"label": "correct", **options}))


def test_a_run_without_samples_says_so(tmp_path):
    empty = write_planted(tmp_path / "empty", images=0)
    with pytest.raises(MidsightError, match="holds no samples"):
        label_run(empty, "yes_no")


def test_a_constant_column_is_skipped_and_refused_by_name(run, tmp_path, monkeypatch):
    from midsight.probes import study as module

    read = module.read_column

    def constant(division, name):
        features = read(division, name)
        return np.ones_like(features) if name == IMAGE else features

    monkeypatch.setattr(module, "read_column", constant)
    finding = study(run, StudyOptions(label="correct", permutations=0)).finding
    assert [one.column for one in finding.skipped] == [IMAGE]
    assert IMAGE not in by_name(finding.columns)
    with pytest.raises(MidsightError, match=f"In the column {IMAGE}, all rows are equal"):
        study(run, StudyOptions(label="correct", columns=(IMAGE, PLANTED), permutations=0))
    by_position = StudyOptions(label="correct", columns=("vision_token", PLANTED), permutations=0)
    assert [one.column for one in study(run, by_position).finding.skipped] == [IMAGE]


def test_a_stratum_with_one_class_is_a_warning(run):
    kinds = run.table()["kind"].to_pylist()
    relabel(run, [int(kind == "dog" and i % 2) for i, kind in enumerate(kinds)], "one_sided")
    finding = study(run, StudyOptions(label="one_sided", strata=("kind",), permutations=0)).finding
    assert any("Every sample with kind 'cat' (134) has the label false" in warning for warning in finding.warnings)
    assert by_name(finding.baselines)["stratum: kind"].auroc > 0.7


def test_many_strata_with_one_class_are_one_warning(run):
    options = StudyOptions(label="correct", strata=("sample_id",), permutations=0, columns=(PLANTED,))
    warnings = [one for one in study(run, options).finding.warnings if "one class only" in one]
    assert len(warnings) == 1
    assert "Every sample with sample_id 's0' (1) has the label" in warnings[0]
    assert "400 of 400 values of sample_id hold one class only" in warnings[0]


def test_a_changed_result_is_refused(run, done):
    path = done[1] / "result.json"
    text = path.read_text()
    path.write_text(text.replace('"folds": 5', '"folds": 6'))
    with pytest.raises(DamagedRunError, match="make the finding correct again"):
        read_result(run.path, run.spec.run_id, "correct")
    assert [finding.file for finding in verify_run(run.path).findings] == ["findings/correct/result.json"]
    path.write_text(text)
    assert verify_run(run.path).sound


@pytest.mark.slow
def test_the_command_prints_a_conclusion_and_plain_data(run):
    arguments = [
        "probe",
        str(run.path),
        "--columns",
        "query_token_representation",
        "--permutations",
        "9",
        "--name",
        "q",
    ]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "The column chosen in inner folds has AUROC" in " ".join(shown.output.split())
    plain = CliRunner().invoke(app, [*arguments, "--json"])
    assert [one["layer"] for one in json.loads(plain.stdout)["columns"]] == [0, 1, 2]
    wrong = CliRunner().invoke(app, ["probe", str(run.path), "--group-by", "nope"])
    assert wrong.exit_code == 2
    assert open_run(run.path).path == run.path


@pytest.mark.slow
def test_other_methods_and_the_papers_recipe_are_there_on_request(run):
    options = StudyOptions(
        label="correct", columns=(PLANTED,), methods=("ridge", "logistic", "mlp"), halp=True, permutations=0
    )
    finding = study(run, options).finding
    assert [one.method for one in finding.columns] == ["ridge", "logistic", "mlp"]
    aurocs = [one.auroc for one in finding.columns]
    assert aurocs[1] == pytest.approx(aurocs[0], abs=0.02)
    assert aurocs[2] > 0.8
    assert all(one.gain_interval and one.gain_interval[0] > 0 for one in finding.columns)
    assert (finding.halp[0].tested, finding.halp[0].column) == (80, PLANTED)
    assert finding.halp[0].tested_on_training_images > 70
    assert finding.halp[0].train_auroc > finding.halp[0].auroc > 0.8
    assert "do not compare it" in as_markdown(finding)


def test_slow_methods_need_named_columns(run):
    with pytest.raises(MidsightError, match="halp=True is for chosen columns"):
        study(run, StudyOptions(label="correct", halp=True))
    with pytest.raises(MidsightError, match="methods='ridge,mlp' is for chosen columns"):
        study(run, StudyOptions(label="correct", methods=("ridge", "mlp")))
    with pytest.raises(MidsightError, match="methods='svm' is not a method; choose from ridge, logistic, mlp"):
        study(run, StudyOptions(label="correct", methods=("svm",)))


def test_runs_give_data_to_scikit_learn_and_probe_themselves(run):
    opened = midsight.open_run(run.path)
    data = opened.training_data(PLANTED, "correct")
    assert (data.X.shape, data.y.sum(), len({*data.groups})) == ((400, 12), run_labels(run).count(True), 100)
    scores = cross_val_score(
        LogisticRegression(), data.X, data.y, groups=data.groups, cv=GroupKFold(5), scoring="roc_auc"
    )
    finding = opened.probe("correct", name="api", columns=[PLANTED], permutations=0)
    assert scores.mean() == pytest.approx(finding.columns[0].auroc, abs=0.02)
    assert "api" in finding_names(run.path)
    assert opened.matrices("query_token").shape == (400, LAYERS, 12)

"""Risks before the first token, and answers that are left out because of them."""

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import MidsightError, RunError
from midsight.labels.judge import JudgeOptions
from midsight.labels.label import label_run
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.reports.summary import summarise
from midsight.store.verify import verify_run
from support.pictures import encoded, picture
from support.probes import made_up_probe, of_another, write_probes

pytestmark = pytest.mark.slow

QUERY = "query_token_representation.layer_4"
LAST = "query_token_representation.layer_7_residual"
IMAGE = "vision_token_representation.layer_4"
COLUMNS: dict[str, Any] = {"layers": [4, 7], "residual": True, "processor_pooled_pixels": True, "max_new_tokens": 4}
ALONE: dict[str, Any] = {"batch_size": 1, "share": False}
QUESTIONS = ["What is this?", "Is there a red circle in the image?"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three images with two questions each."""
    folder = tmp_path_factory.mktemp("risk")
    for i in range(3):
        (folder / f"{i}.png").write_bytes(encoded(picture((40 + 30 * i, 64), i)))
    rows = [{"id": f"q{n}", "image": f"{n % 3}.png", "question": QUESTIONS[n // 3], "answer": "yes"} for n in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def run(data, model, tmp_path_factory):
    """All of it, each sample in a call of its own."""
    return midsight.extract(data, model=model, out=tmp_path_factory.mktemp("whole") / "run", **COLUMNS, **ALONE)


@pytest.fixture(scope="module")
def probe(run):
    return made_up_probe(run, QUERY)


@pytest.fixture(scope="module")
def risks(run, probe):
    return 1 - probe.score(run.matrix(QUERY))


@pytest.fixture(scope="module")
def middle(risks):
    """A risk that two samples exceed."""
    return float(np.sort(risks)[3])


@pytest.mark.parametrize("column", [QUERY, LAST, IMAGE, VISION_ONLY, PROCESSOR_POOLED_PIXELS])
def test_score_is_the_probe_on_the_stored_run_bit_for_bit_on_the_same_calls(data, model, run, column):
    own = made_up_probe(run, column)
    table = model.score(data, own, **ALONE, progress=None)
    assert table["sample_id"].to_pylist() == run.sample_ids()
    assert np.array_equal(table["risk"].to_numpy(), 1 - own.score(run.matrix(column)))
    assert table["failure"].null_count == 6
    known = run.table()
    top = known["first_token_top_logprobs"].to_pylist()
    assert np.allclose(table["first_token_max"], [row[0] for row in top], atol=1e-5)
    assert np.allclose(table["first_token_margin"], [row[0] - row[1] for row in top], atol=1e-5)
    assert np.allclose(table["first_token_entropy"], known["first_token_entropy"], atol=1e-5)


def test_shared_prefixes_and_larger_calls_give_the_same_risks(data, model, probe, risks):
    together = model.score(data, probe, batch_size=6, progress=None)
    assert np.abs(together["risk"].to_numpy() - risks).max() < 1e-5
    reverse = model.score(data, probe, risk_of="true", batch_size=6, progress=None)
    assert np.allclose(reverse["risk"], 1 - together["risk"].to_numpy(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("options", [ALONE, {"batch_size": 6}], ids=["alone", "shared"])
def test_answers_below_the_limit_are_as_without_it_and_the_others_are_missing(
    data, model, run, probe, risks, middle, tmp_path, options
):
    limited = midsight.extract(
        data, model=model, out=tmp_path / "run", probe=probe, abstain_above=middle, **COLUMNS, **options
    )
    rows, whole = limited.table().to_pylist(), run.table().to_pylist()
    for row, before, risk in zip(rows, whole, risks, strict=True):
        assert row["risk"] == pytest.approx(risk, abs=1e-5)
        for name in ("first_token_entropy", "first_token_top_logprobs"):
            assert row[name] == pytest.approx(before[name], abs=1e-4)
        if risk > middle + 1e-5:
            assert row["finish_reason"] == "abstained"
            assert row["answer"] is row["answer_token_ids"] is row["answer_logprobs"] is None
        elif risk < middle - 1e-5 or options is ALONE:
            assert row["answer_token_ids"] == before["answer_token_ids"]
            assert row["answer_logprobs"] == pytest.approx(before["answer_logprobs"], abs=1e-4)
            assert row["answer"] == before["answer"]
    assert verify_run(limited.path).sound
    answers = summarise(limited).answers
    assert answers is not None
    assert (answers.finish_reasons["abstained"], answers.missing) == (2, 0)
    tokens = [len(row["answer_token_ids"]) for row in rows if row["answer_token_ids"]]
    assert answers.mean_tokens == pytest.approx(np.mean(tokens))


def test_a_label_counts_abstained_apart_from_wrong_and_undecided(data, model, probe, middle, tmp_path):
    limited = midsight.extract(
        data, model=model, out=tmp_path / "run", probe=probe, abstain_above=middle, **COLUMNS, **ALONE
    )
    for judge, options in (("exact", None), ("yes_no", JudgeOptions(undecided="wrong")), ("yes_no:pope", None)):
        record = label_run(limited, judge, options=options)
        assert record.abstained == 2
        assert record.right + record.wrong + record.undecided == 4
        assert record.without_reference == 0
    reasons = limited.label_table("correct")["reason"].to_pylist()
    assert reasons.count("abstained") == 2
    rows = "".join(json.dumps({"sample_id": f"q{n}", "ok": "no"}) + "\n" for n in range(6))
    (tmp_path / "verdicts.jsonl").write_text(rows)
    record = limited.label_from(tmp_path / "verdicts.jsonl", column="ok")
    assert (record.wrong, record.abstained, record.without_reference) == (4, 2, 0)


def test_limits_at_the_ends_answer_all_or_none(data, model, run, probe, tmp_path):
    none = midsight.extract(data, model=model, out=tmp_path / "none", probe=probe, abstain_above=0, **COLUMNS)
    assert none.table()["finish_reason"].to_pylist() == ["abstained"] * 6
    assert none.table()["answer"].null_count == 6
    certain = midsight.extract(data, model=model, out=tmp_path / "all", probe=probe, abstain_above=1, **COLUMNS)
    assert certain.table()["answer_token_ids"] == run.table()["answer_token_ids"]


def test_a_limit_is_a_risk_that_may_be_reached_but_not_exceeded(data, model, run, probe, risks, tmp_path):
    limited = midsight.extract(
        data, model=model, out=tmp_path / "run", probe=probe, abstain_above=float(risks.max()), **COLUMNS, **ALONE
    )
    assert "abstained" not in limited.table()["finish_reason"].to_pylist()
    just_below = math.nextafter(float(risks.max()), 0)
    record = model.extract(
        data.parent / f"{risks.argmax() % 3}.png",
        QUESTIONS[risks.argmax() // 3],
        probe=probe,
        abstain_above=just_below,
        **COLUMNS,
    )
    assert (record.answer, record.finish_reason, record.risk) == (None, "abstained", risks.max())


def test_a_run_without_answers_may_have_risks(data, model, probe, risks, tmp_path):
    mute = midsight.extract(data, model=model, out=tmp_path / "run", probe=probe, answers=False, layers=[4], **ALONE)
    assert np.array_equal(mute.table()["risk"].to_numpy(), risks)
    assert "first_token_entropy" in mute.columns
    assert "answer" not in mute.columns


def test_a_resumed_run_keeps_its_decisions_and_refuses_others(data, model, run, probe, risks, middle, tmp_path):
    folder = write_probes(tmp_path / "probe", [probe])
    options: dict[str, Any] = {
        "model": model,
        "out": tmp_path / "run",
        "probe": folder,
        "abstain_above": middle,
        **COLUMNS,
        **ALONE,
    }
    midsight.extract(data, limit=4, **options)
    resumed = midsight.extract(data, **options)
    assert [row == "abstained" for row in resumed.table()["finish_reason"].to_pylist()] == (risks > middle).tolist()
    other = write_probes(tmp_path / "other", [made_up_probe(run, QUERY, seed=1)])
    others: list[tuple[dict[str, Any], str]] = [
        ({"abstain_above": 0.9}, f"was started with abstain_above={middle}, and this call has abstain_above=0.9"),
        ({"abstain_above": None}, "and this call has no abstain_above"),
        ({"risk_of": "true"}, "was started with risk_of='false', and this call has risk_of='true'"),
        ({"probe": other}, r"was started with probe='\S+probe' \(SHA-256 \w{16}\), and this call has probe='\S+other'"),
        ({"probe": None, "abstain_above": None}, r"was started with probe=.*, and this call has no probe; use the old"),
    ]
    for changes, problem in others:
        with pytest.raises(RunError, match=problem):
            midsight.extract(data, **{**options, **changes})


CHANGES = {
    "model": {"fingerprint": "f" * 64},
    "lora": {"lora": "off"},
    "dtype": {"dtype": "bfloat16"},
    "pixels": {"pixels": "transformers"},
    "prompt": {"prompt": "{question} Be brief."},
    "system": {"system": "Look."},
    "prompt_template": {"template_sha256": "a" * 64},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_probe_refuses_what_it_was_not_trained_on_by_name(data, model, probe, tmp_path, name):
    foreign = of_another(probe, **CHANGES[name])
    with pytest.raises(MidsightError, match=rf"The probe .* was trained .*\b{name}\b") as caught:
        midsight.extract(data, model=model, out=tmp_path / "run", probe=foreign, **COLUMNS)
    assert str(caught.value).count(". ") == 0
    assert not (tmp_path / "run").exists()
    if name in ("model", "lora", "dtype", "prompt_template"):  # the others are taken from the probe
        with pytest.raises(MidsightError, match=rf"The probe .* was trained .*\b{name}\b"):
            model.score(data, foreign, progress=None)


@pytest.mark.parametrize(
    ("column", "options", "remedy"),
    [
        (QUERY, {"layers": [0]}, "with layers=4 and positions='query_token'"),
        (IMAGE, {"layers": [4], "positions": "query_token"}, "with layers=4 and positions='vision_token'"),
        (LAST, {"layers": [7]}, "with layers=7 and positions='query_token' and residual=True"),
        (VISION_ONLY, {"vision": "none"}, "with vision='mean'"),
        (PROCESSOR_POOLED_PIXELS, {}, "with processor_pooled_pixels=True"),
    ],
)
def test_a_probe_refuses_a_call_that_does_not_extract_its_column(data, model, run, tmp_path, column, options, remedy):
    own = made_up_probe(run, column)
    with pytest.raises(MidsightError, match=f"reads {column}, and this call extracts .*; extract it too, {remedy}"):
        midsight.extract(data, model=model, out=tmp_path / "run", probe=own, **options)


def test_a_probe_that_does_not_know_its_origin_says_so(data, model, probe):
    old = dataclasses.replace(probe, origin=None)
    with pytest.raises(MidsightError, match="does not say which model and prompt it was trained on"):
        model.score(data, old, progress=None)
    imported = of_another(probe, fingerprint=None, model="halp")
    with pytest.raises(MidsightError, match="trained on an imported run of halp"):
        model.score(data, imported, progress=None)
    deeper = dataclasses.replace(probe, column="query_token_representation.layer_31")
    with pytest.raises(MidsightError, match=r"reads query_token_representation\.layer_31 .* has 8 decoder layers"):
        model.score(data, deeper, progress=None)


def test_a_state_that_is_not_finite_is_a_failure_and_no_risk(data, model, probe, monkeypatch):
    from midsight.extraction import extract_call

    original = extract_call.collect_vectors

    def poisoned(request, items, *rest):
        made = original(request, items, *rest)
        for item, vectors in zip(items, made, strict=True):
            if item.sample.sample_id == "q1":
                vectors[QUERY] = np.full_like(vectors[QUERY], np.nan)
        return made

    monkeypatch.setattr(extract_call, "collect_vectors", poisoned)
    with pytest.warns(UserWarning, match="1 sample failed"):
        rows = model.score(data, probe, progress=None).to_pylist()
    assert [row["risk"] is None for row in rows] == [row["sample_id"] == "q1" for row in rows]
    assert f"{QUERY} has values that are not finite" in rows[1]["failure"]


def test_the_end_of_an_extraction_says_what_leaving_out_did(data, model, checkpoint, probe, middle, tmp_path):
    folder = write_probes(tmp_path / "probe", [probe])
    call = ["extract", data, "--model", checkpoint, "--device", "cpu", "--out", tmp_path / "run", "--layers", "4,7"]
    call += ["--probe", folder, "--abstain-above", middle, "--max-new-tokens", "4", "--batch-size", "1", "--no-share"]
    done = CliRunner().invoke(app, list(map(str, call)))
    said = " ".join(done.output.split())
    assert done.exit_code == 0, said
    assert "is the probability that the label correct is false" in said
    assert f"2 of 6 samples were not answered, because the risk was above {middle:g}." in said
    assert re.search(r"Decoding 4 answers of \d+ tokens took", said)
    assert "leaving out 2 saved at most" in said
    assert "that the judge exact can decide are right" in said

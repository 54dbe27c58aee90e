"""The table of risks: formats, failures as rows, resuming, and what may not be replaced."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import MidsightError, RunError
from midsight.reports.risks import RISK_SCHEMA
from support.pictures import encoded, picture
from support.probes import made_up_probe, write_probes

COLUMN = "query_token_representation.layer_4"
ROWS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight rows on four images; one image is missing, and one question is empty."""
    folder = tmp_path_factory.mktemp("score")
    for i in range(4):
        (folder / f"{i}.png").write_bytes(encoded(picture((48, 32 + 16 * i), i)))
    rows = [{"id": f"q{n}", "image": f"{n // 2}.png", "question": f"=What, {n}?"} for n in range(ROWS)]
    rows[3]["image"], rows[6]["question"] = "gone.png", ""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def folder(data, model, tmp_path_factory):
    """A probe of a run on the same data."""
    made = tmp_path_factory.mktemp("probes")
    run = midsight.extract(data, model=model, out=made / "run", layers=[4], answers=False, progress=None)
    return write_probes(made / "probe", [made_up_probe(run, COLUMN)], dataset_sha256=run.spec.dataset.sha256)


@pytest.fixture(scope="module")
def table(data, model, folder):
    return model.score(data, folder, progress=None)


def test_every_sample_has_a_row_in_dataset_order_and_failures_their_reason(table):
    assert table.schema == RISK_SCHEMA
    rows = table.to_pylist()
    assert [row["input_index"] for row in rows] == list(range(ROWS))
    failed = {row["sample_id"]: row["failure"] for row in rows if row["failure"]}
    assert {*failed} == {"q3", "q6"}
    assert "gone.png" in failed["q3"]
    for row in rows:
        assert (row["risk"] is None) == (row["sample_id"] in failed)
        assert row["risk"] is None or 0 < row["risk"] < 1
        assert row["risk"] is None or row["first_token_margin"] >= 0 > row["first_token_max"]


def read_jsonl(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read_csv(file):
    with file.open(encoding="utf-8", newline="") as opened:
        return [*csv.DictReader(opened)]


def test_all_formats_hold_the_same_numbers(data, model, folder, table, tmp_path):
    read = {"jsonl": read_jsonl, "csv": read_csv, "parquet": lambda file: pq.read_table(file).to_pylist()}
    for suffix, reader in read.items():
        out = tmp_path / f"risks.{suffix}"
        model.score(data, folder, out=out, progress=None)
        rows = reader(out)
        assert [*rows[0]] == RISK_SCHEMA.names
        for row, expected in zip(rows, table.to_pylist(), strict=True):
            assert (row["failure"] or None) == expected["failure"]
            for name in ("risk", "first_token_max", "first_token_entropy", "first_token_margin"):
                if expected[name] is None:
                    assert row[name] in (None, "")
                else:
                    kind = np.float64 if name == "risk" else np.float32
                    assert kind(row[name]) == kind(expected[name]), (suffix, name)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["risks.csv", "risks.jsonl", "risks.parquet"]
    assert read_csv(tmp_path / "risks.csv")[0]["question"] == "'=What, 0?"


def test_what_is_there_is_not_replaced_unless_told(data, model, folder, tmp_path):
    out = tmp_path / "risks.csv"
    out.write_text("mine")
    with pytest.raises(MidsightError, match=r"risks\.csv exists already; choose another out or give overwrite=True"):
        model.score(data, folder, out=out, progress=None)
    assert out.read_text() == "mine"
    model.score(data, folder, out=out, overwrite=True, limit=1, progress=None)
    assert len(read_csv(out)) == 1
    with pytest.raises(MidsightError, match=r"out is \S+risks\.txt; end its name with \.jsonl, \.csv, \.parquet"):
        model.score(data, folder, out=tmp_path / "risks.txt", progress=None)


class StoppedHereError(Exception):
    """Ends a call early, as a signal would."""


def test_a_call_that_ended_early_is_resumed_by_the_same_call_only(data, model, folder, table, tmp_path):
    out, partial = tmp_path / "risks.jsonl", tmp_path / "risks.jsonl.partial"

    def stop(progress):
        if progress.done:
            raise StoppedHereError

    with pytest.raises(StoppedHereError):
        model.score(data, folder, out=out, batch_size=1, share=False, progress=stop)
    assert partial.is_dir()
    assert not out.exists()
    with pytest.raises(RunError, match="was started with risk_of='false', and this call has risk_of='true'"):
        model.score(data, folder, out=out, risk_of="true", batch_size=1, share=False, progress=None)
    seen = []
    model.score(data, folder, out=out, batch_size=1, share=False, progress=seen.append)
    assert seen[0].already > 0
    assert not partial.exists()
    found = [row["risk"] for row in read_jsonl(out)]
    for risk, expected in zip(found, table["risk"].to_pylist(), strict=True):
        assert risk == pytest.approx(expected, abs=1e-5)


def test_the_command_writes_the_table_and_says_what_the_risk_is(data, checkpoint, folder, table, tmp_path):
    out = tmp_path / "risks.parquet"
    call = ["score", data, "--model", checkpoint, "--device", "cpu", "--probe", folder, "--out", out]
    done = CliRunner().invoke(app, list(map(str, call)))
    said = " ".join(done.output.split())
    assert done.exit_code == 1, said  # samples failed
    assert pq.read_table(out).equals(table)
    assert "is the probability that the label correct is false" in said
    assert "The probe was trained on these data" in said
    assert f"{out}: 6 samples scored, 2 failed." in said
    refused = CliRunner().invoke(app, list(map(str, call)))
    assert (refused.exit_code, "give --overwrite" in " ".join(refused.output.split())) == (2, True)
    wrong = CliRunner().invoke(app, list(map(str, [*call, "--overwrite", "--probe-column", "nope"])))
    assert "has no probe of 'nope'; it has query_token" in " ".join(wrong.output.split())


def test_an_image_only_probe_says_that_its_risk_is_the_images(data, model, folder, capsys):
    probe = midsight.Probe.load(folder)
    run = midsight.extract(data, model=model, out=folder.parent / "vision", layers=[4], answers=False, progress=None)
    own = made_up_probe(run, "vision_token_representation.layer_4", origin=probe.origin)
    model.score(data, own, limit=2)
    assert "is the same for all questions on an image, and so is the risk" in " ".join(capsys.readouterr().err.split())

"""midsight extract into a bucket, and the commands on what it leaves, against moto's S3 on loopback."""

import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from midsight.buckets import connect
from midsight.cli import app
from midsight.store.reader import open_run
from support.buckets import BUCKET, ENVIRONMENT, serving_bucket
from support.pictures import write_csv

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # moto warns of its own libraries
OUT = f"s3://{BUCKET}/first"


def run_command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_is_extracted_labelled_probed_and_reported_in_a_bucket(checkpoint, tmp_path, monkeypatch):
    rows = [f"q{n},{n % 6}.png,What is {n}?" for n in range(24)]
    data = write_csv(tmp_path, [(64, 64)] * 6, rows)
    local = tmp_path / "local"
    with serving_bucket() as (endpoint, _):
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        connect.open_store.cache_clear()
        for out in (OUT, local):
            run_command("extract", data, "--model", checkpoint, "--device", "cpu", "--out", out, "--layers", "0",
                        "--max-new-tokens", 2)  # fmt: skip
        assert "nothing to do" in run_command("extract", data, "--model", checkpoint, "--device", "cpu", "--out", OUT,
                                              "--layers", "0", "--max-new-tokens", 2)  # fmt: skip
        run, same = midsight.open_run(OUT), open_run(local)
        assert run.sample_ids() == same.sample_ids()
        assert all(np.array_equal(run.matrix(name), same.matrix(name)) for name in same.vector_columns)
        verdicts = tmp_path / "verdicts.csv"
        verdicts.write_text("sample_id,right\n" + "".join(f"q{n},{n // 6 % 2}\n" for n in range(24)))
        for place in (OUT, local):
            run_command("label", place, "--from", verdicts, "--column", "right")
            run_command("probe", place, "--permutations", 0, "--folds", 3)
        assert midsight.open_run(OUT).labels("correct") == midsight.open_run(local).labels("correct")
        run_command("report", OUT, "--out", tmp_path / "report.html", "--images", tmp_path)
        assert "correct" in (tmp_path / "report.html").read_text()
        assert "sound" in run_command("verify", OUT)
        connect.open_store.cache_clear()

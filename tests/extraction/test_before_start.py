"""Before the start: counts, size against free space, and the dry run."""

import shutil
from collections import namedtuple

import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import MidsightError
from midsight.extraction.job import look_ahead, make_job
from midsight.extraction.task import make_task
from support.pictures import write_csv

CALL = {"layers": [0, 7], "max_new_tokens": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [f"q{n},{n % 4}.png,What is {n}?" for n in range(12)]
    return write_csv(tmp_path_factory.mktemp("plan"), [(64, 64)] * 4, [*rows, "bad,0.png,"])


def forecast(data, *, model, **call):
    """The progress of the run before it starts."""
    return look_ahead(make_job(make_task(data, model=None, **call), model.loaded)).progress


def command(data, checkpoint, out, *more):
    arguments = ["extract", data, "--model", checkpoint, "--device", "cpu", "--out", out, "--layers", "0,7"]
    return CliRunner().invoke(app, [*map(str, [*arguments, "--max-new-tokens", 2, *more])])


def test_a_dry_run_counts_and_writes_nothing(data, checkpoint, model, tmp_path):
    planned = command(data, checkpoint, tmp_path / "run", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "13 samples on 4 images, 0 done before, 13 to do; about " in " ".join(planned.output.split())
    assert "Nothing was written." in planned.output
    assert not (tmp_path / "run").exists()
    midsight.extract(data, model=model, out=tmp_path / "run", limit=5, **CALL)
    before = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "run").rglob("*"))
    planned = command(data, checkpoint, tmp_path / "run", "--dry-run")
    assert "13 samples on 4 images, 5 done before, 8 to do" in " ".join(planned.output.split())
    assert sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "run").rglob("*")) == before
    refused = command(data, checkpoint, tmp_path / "run", "--dry-run", "--residual")
    assert refused.exit_code == 2
    assert "--residual" in refused.output


def test_a_dry_run_reads_no_weights_and_knows_the_run_all_the_same(data, checkpoint, model, tmp_path, monkeypatch):
    midsight.extract(data, model=model, out=tmp_path / "run", limit=5, **CALL)
    monkeypatch.setattr("midsight.checkpoints.checkpoint.LoadChoice", None)
    monkeypatch.setattr("midsight.checkpoints.loading.LoadChoice", None)
    bare = midsight.load(checkpoint, device="cpu", weights=False)
    with pytest.raises(TypeError):
        midsight.load(checkpoint, device="cpu")
    progress = forecast(data, model=bare, out=tmp_path / "run", **CALL)
    assert (progress.samples, progress.already, progress.remaining) == (13, 5, 8)


def test_failed_samples_are_to_do_again_only_with_retry_failed(data, model, tmp_path):
    midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert forecast(data, model=model, out=tmp_path / "run", **CALL).remaining == 0
    assert forecast(data, model=model, out=tmp_path / "run", retry_failed=True, **CALL).remaining == 1


Usage = namedtuple("Usage", "total used free")


def test_what_cannot_fit_is_refused_before_anything_is_written(data, checkpoint, model, tmp_path, monkeypatch):
    needed = forecast(data, model=model, out=tmp_path / "run", **CALL).estimated_bytes
    assert needed is not None
    asked = []

    def disk_usage(path):
        asked.append(path)
        return Usage(10**9, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    free = needed - 1
    with pytest.raises(
        MidsightError, match=r"will take about [\d.]+ .B more and its disk has [\d.]+ .B free; free some"
    ):
        midsight.extract(data, model=model, out=tmp_path / "new" / "run", **CALL)
    assert set(asked) == {tmp_path}, "the nearest folder that is there"
    assert not (tmp_path / "new").exists()
    assert command(data, checkpoint, tmp_path / "run", "--dry-run").exit_code == 2
    free = needed
    run = midsight.extract(data, model=model, out=tmp_path / "run", **CALL)
    assert len(run) == 12
    free = 0
    with pytest.raises(MidsightError, match="will take about"):  # resumed with the bad row to do
        midsight.extract(data, model=model, out=tmp_path / "run", retry_failed=True, **CALL)


def test_the_estimate_is_near_what_is_written(data, model, tmp_path):
    call = {"layers": "all", "max_new_tokens": 2}
    estimated = forecast(data, model=model, out=tmp_path / "run", **call).estimated_bytes
    assert estimated is not None
    run = midsight.extract(data, model=model, out=tmp_path / "run", **call)
    written = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    assert estimated / 2 < written < 2 * estimated

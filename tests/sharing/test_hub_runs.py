"""Commands on a run that is on the hub: each reads it, or says in one sentence how to go on."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import midsight
from midsight import MidsightError, cli
from midsight.sharing.push import push
from midsight.store.compact import compact
from midsight.store.hub import download_finding
from midsight.store.probe import Probe
from midsight.store.verify import drop_bad, verify_run
from support.hub_stub import connected_hub, read_files
from support.planted import QUERY, write_planted

TO = "hf://datasets/me/first"
ONLY_READ = (
    r"hf://datasets/me/first(@(?P<revision>\w+))? is on the hub, where a run is only read; download it with `hf "
    r"download me/first --repo-type dataset (?(revision)--revision (?P=revision) )--local-dir FOLDER`, work on that "
    r"folder, and "
    r"`midsight push` it\."
)
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run with a label and a finding."""
    run = midsight.open_run(write_planted(tmp_path_factory.mktemp("planted") / "run", images=20).path)
    run.label(judge="yes_no")
    run.probe("correct", columns=["query_token"], permutations=0, folds=3)
    return run


@pytest.fixture(scope="module")
def hub(local, tmp_path_factory):
    """The hub with the run, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_DISABLE_XET", "1")  # the stub has no xet storage
        patch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        with connected_hub(tmp_path_factory.mktemp("hub"), patch) as hub:
            push(local.path, TO)
            yield hub


def command(*arguments, code=0):
    done = CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.slow
def test_reading_commands_take_the_address(hub, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = command("show", TO)
    assert re.search(r"hf://datasets/me/first@\w+", shown)
    assert "snapshots" not in shown
    assert f"{len(local)} stored" in shown
    assert "sound." in command("verify", TO)
    assert verify_run(TO).rows == len(local)
    command("export", TO, "--format", "npz", "--out", "made.npz", "--columns", QUERY.format(1))
    assert np.array_equal(np.load("made.npz")[QUERY.format(1)], local.matrix(QUERY.format(1)))
    assert np.array_equal(midsight.open_run(TO).matrix(QUERY.format(1)), local.matrix(QUERY.format(1)))
    command("report", TO, "--out", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "hf://datasets/me/first@" in page
    assert "snapshots" not in page
    assert "Wrote 80 samples to first.view.parquet" in command("view", TO, "--no-start")
    assert pq.read_table("first.view.parquet").num_rows == len(local)
    assert "first@main.view.parquet" in command("view", f"{TO}@main", "--no-start")
    assert {path.name for path in tmp_path.iterdir()} == {
        "made.npz", "report.html", "first.view.parquet", "first@main.view.parquet"
    }  # fmt: skip


def test_probes_are_read_there_without_the_parts(hub, local, tmp_path, monkeypatch):
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for end in ("", "/probe"):
        probe = Probe.load(f"{TO}/findings/correct{end}")
        assert probe.digest == Probe.load(local.path / "findings" / "correct" / "probe").digest
    assert [name for name in hub.files("GET") if name.startswith("parts/")] == []
    with pytest.raises(MidsightError, match=r"is no place for a probe; write hf://datasets/OWNER/NAME/findings/"):
        Probe.load(f"{TO}/findings/../../x")
    with pytest.raises(MidsightError, match="does not hold a probe"):
        Probe.load(f"{TO}/findings/other/probe")


@pytest.mark.parametrize("revision", ["", "@main", "@refs/pr/1", "@user/first"])
def test_probes_are_read_there_at_any_revision(monkeypatch, revision):
    asked = []
    monkeypatch.setattr("midsight.store.hub.download_run", lambda address, _: asked.append(str(address)) or Path("x"))
    assert download_finding(f"{TO}{revision}/findings/correct/probe") == Path("x/findings/correct/probe")
    assert asked == [f"{TO}{revision}"]


@pytest.mark.slow
def test_another_run_is_tested_on_it(hub, tmp_path):
    other = midsight.open_run(write_planted(tmp_path / "other", images=20, seed=1, run_id="e" * 32).path)
    other.label(judge="yes_no")
    columns = ("--columns", QUERY.format(1), "--permutations", "0")
    command("probe", other.path, "--evaluate-on", TO, "--folds", "3", *columns)


@pytest.mark.parametrize(
    "arguments",
    [
        ("label", TO, "--judge", "yes_no"),
        ("label", f"{TO}@main", "--judge", "yes_no"),
        ("probe", TO),
        ("compact", TO),
        ("verify", TO, "--drop-bad"),
        ("push", TO, "hf://datasets/me/second"),
        ("import-halp", ".", "--out", TO),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_write_say_how_to_go_on(hub, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    before = {name: [*repository.commits] for name, repository in hub.repositories.items()}
    said = command(*arguments, code=2)
    assert re.search(ONLY_READ, said) or "import-halp" in arguments
    assert {name: [*repository.commits] for name, repository in hub.repositories.items()} == before
    assert [*tmp_path.iterdir()] == []


def test_extraction_into_the_hub_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = command("extract", "none.csv", "--model", "none", "--out", TO, code=2)
    assert f"--out {TO} is on the hub, where a run is only read; extract into a folder, and `midsight push` it." in said
    assert [*tmp_path.iterdir()] == []


def test_a_copy_in_the_cache_is_not_changed(hub, monkeypatch):
    run = midsight.open_run(TO)
    assert isinstance(run.path, Path)
    monkeypatch.chdir(run.path)
    before = read_files(run.path)
    for change in (
        lambda: run.label("yes_no"),
        lambda: run.label_from("verdicts.csv", column="right"),
        lambda: run.probe("correct"),
        lambda: push(run.path, "hf://datasets/me/second"),
        lambda: push(str(run.path), "hf://datasets/me/second"),
        lambda: compact(str(run.path)),
        lambda: compact("."),
        lambda: drop_bad(str(run.path)),
    ):
        with pytest.raises(MidsightError, match=ONLY_READ):
            change()
    assert read_files(run.path) == before


@pytest.mark.parametrize("address", ["s3://shelf/made", "hf://datasets/me/first", "az://shelf/made"])
@pytest.mark.parametrize("name", ["export", "report", "view"])
def test_what_is_written_to_a_disk_is_not_put_into_a_folder_named_like_an_address(
    local, tmp_path, monkeypatch, name, address
):
    monkeypatch.chdir(tmp_path)
    out = f"{address}/{name}.html"
    said = command(name, local.path, "--out", out, *(("--format", "npz") if name == "export" else ()), code=2)
    assert f"--out {out} is an address, and this is written to a file on a disk; name one, and copy it." in said
    assert [*tmp_path.iterdir()] == []

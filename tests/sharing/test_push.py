"""Runs on the hub: what is uploaded, in which order, and what comes back."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

import midsight
from midsight import MidsightError, cli, open_run
from midsight.sharing.push import push
from midsight.store.compact import compact
from support.hub_stub import connected_hub, read_files
from support.made_up import content_of, make_record, make_spec, write_run
from support.planted import write_planted

TO = "hf://datasets/me/first"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # the stub has no xet storage
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    with connected_hub(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.fixture
def run(tmp_path):
    """A run of 24 samples in three commits, with a label."""
    spec = make_spec(run_id="0123456789abcdef" * 2)
    for start in range(0, 24, 8):
        write_run(tmp_path / "run", [make_record(index, spec) for index in range(start, start + 8)], spec)
    return open_run(tmp_path / "run")


def on_the_hub(hub, name="me/first"):
    repository = hub.repositories[name]
    return repository.commits[repository.refs["main"]]


def test_what_comes_back_is_equal(hub, run, tmp_path):
    (run.path / "locks" / "0-of-1.working").write_text("{}")
    pushed = push(run.path, TO)
    files = read_files(run.path)
    expected = {name: data for name, data in files.items() if not name.startswith("locks/")}
    stored = dict(on_the_hub(hub))
    card = stored.pop("README.md").decode()
    assert stored == expected
    assert (pushed.uploaded, pushed.there, pushed.removed) == (len(expected), 0, 0)
    back = midsight.open_run(TO)
    assert content_of(back.path) == content_of(run.path)
    assert back.vector_columns == run.vector_columns
    for name in run.vector_columns:
        assert f"| `{name}` | {run.spec.vectors[name]} |" in card
    assert 'midsight.open_run("hf://datasets/me/first")' in card


def test_nothing_is_uploaded_twice_and_new_commits_are_added(hub, run):
    push(run.path, TO)
    hub.requests.clear()
    again = push(run.path, TO)
    assert (again.uploaded, again.there) == (0, 7)
    assert [request.method for request in hub.requests if request.method == "PUT"] == []
    write_run(run.path, [make_record(24, run.spec)], run.spec)
    more = push(run.path, TO)
    assert (more.uploaded, more.there) == (2, 7)
    assert len(midsight.open_run(TO)) == 25


def test_an_upload_that_breaks_off_is_no_run_until_the_same_call_has_finished(hub, run, monkeypatch):
    monkeypatch.setattr("midsight.sharing.push.FILES_IN_COMMIT", 2)
    commits = []

    def break_off(request):
        if "/commit/" in request.path:
            commits.append(request)
            return 500 if len(commits) == 3 else None
        return None

    hub.on_request = break_off
    with pytest.raises(MidsightError, match=r"^hf://datasets/me/first cannot be reached: .*; what was uploaded stays"):
        push(run.path, TO)
    assert "run.json" not in on_the_hub(hub)
    with pytest.raises(MidsightError, match=r"^hf://datasets/me/first holds no run, because it has no run.json"):
        midsight.open_run(TO)
    hub.on_request = lambda request: None
    done = push(run.path, TO)
    assert done.there == 4
    assert content_of(midsight.open_run(TO).path) == content_of(run.path)


def test_parts_that_compaction_replaced_are_removed(hub, run):
    push(run.path, TO)
    compact(run.path)
    pushed = push(run.path, TO)
    assert pushed.removed == 6
    assert sorted(name for name in on_the_hub(hub) if name.startswith("parts/")) == sorted(
        f"parts/{path.name}" for path in (run.path / "parts").iterdir()
    )
    assert content_of(midsight.open_run(TO).path) == content_of(run.path)


def test_another_run_is_not_written_over(hub, run, tmp_path):
    push(run.path, TO)
    before = on_the_hub(hub)
    other = write_planted(tmp_path / "other", images=4, run_id="f" * 32)
    with pytest.raises(MidsightError, match=r"^hf://datasets/me/first holds another run \(0123456789abcdef0123456789"):
        push(other.path, TO)
    assert on_the_hub(hub) == before


def test_labels_that_the_run_has_no_longer_are_removed_and_the_card_counts_what_is_there(hub, run):
    run.label(judge="contains")
    push(run.path, TO)
    there = dict(on_the_hub(hub))
    labels = [name for name in there if name.startswith("annotations/")]
    assert labels != []
    assert "24 samples of" in there["README.md"].decode()
    for name in labels:
        (run.path / name).unlink()
    write_run(run.path, [make_record(24, run.spec)], run.spec)
    hub.add("me/first", {**there, "run.json": there["run.json"] + b" "}, "main")
    assert push(run.path, TO).removed == len(labels)
    there = on_the_hub(hub)
    assert [name for name in there if name.startswith("annotations/")] == []
    assert "25 samples of" in there["README.md"].decode()
    assert there["run.json"] == (run.path / "run.json").read_bytes()


def test_a_card_that_somebody_edited_stays(hub, run):
    push(run.path, TO)
    written = on_the_hub(hub)["README.md"]
    for edited in (b"---\nlicense: mit\n---\nOurs.\n", written.replace(b"---\n", b"---\nlicense: mit\n", 1)):
        hub.add("me/first", {**on_the_hub(hub), "README.md": edited}, "main")
        push(run.path, TO)
        assert on_the_hub(hub)["README.md"] == edited


def test_what_the_hub_then_has_is_compared(hub, run):
    """A proxy or a disk that changed a byte of what was uploaded."""

    def damage(request):
        if "/tree/" in request.path and hub.repositories["me/first"].refs["main"]:
            files = on_the_hub(hub)
            if "run.json" in files:
                name = next(name for name in files if name.endswith(".parquet"))
                files[name] = b"x" + files[name][1:]
        return

    hub.on_request = damage
    with pytest.raises(
        MidsightError, match=r"^After the upload parts/0-of-1-000000.parquet in hf://datasets/me/first is"
    ):
        push(run.path, TO)


@pytest.mark.slow
def test_datasets_reads_the_parts_by_the_cards_fields(hub, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    planted = open_run(write_planted(tmp_path / "run", images=6).path)
    planted.label(judge="yes_no")
    push(planted.path, TO)
    copy = tmp_path / "copy"
    for name, data in on_the_hub(hub).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    rows = datasets.load_dataset(str(copy), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows.num_rows == len(planted) == 24
    assert rows["sample_id"][:3] == planted.table()["sample_id"].to_pylist()[:3]
    assert midsight.open_run(TO).labels("correct") == planted.labels("correct")


def test_hostile_names_are_text_on_the_card(hub, tmp_path):
    spec = make_spec()
    hostile = "x` | <img src=x onerror=alert(1)> [a](http://evil)\n# Heading"
    renamed = replace(spec, dataset=replace(spec.dataset, path=hostile))
    write_run(tmp_path / "run", [make_record(0, renamed)], renamed)
    push(tmp_path / "run", TO)
    card = on_the_hub(hub)["README.md"].decode()
    (line,) = [line for line in card.splitlines() if "onerror" in line]
    assert line.startswith("1 sample of `x' ¦ <img src=x onerror=alert(1)> [a](http://evil) # Heading`")


@pytest.mark.parametrize(
    "address", ["hf://me/first", "hf://datasets/first", "hf://models/me/first", "me/first", "hf://datasets/a/b/c"]
)
def test_an_address_of_another_kind_is_refused(run, address):
    with pytest.raises(MidsightError, match=r"is no place for a run; write hf://datasets/OWNER/NAME\.$"):
        push(run.path, address)


def test_the_command_says_what_it_did(hub, run):
    done = CliRunner().invoke(cli.app, ["push", str(run.path), TO], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "hf://datasets/me/first: 7 files uploaded, 0 there before; all are equal to the run's." in done.output
    hub.on_request = lambda request: 403 if request.method == "POST" else None
    refused = CliRunner().invoke(cli.app, ["push", str(run.path), "hf://datasets/other/run"])
    assert refused.exit_code == 2
    assert "Error: hf://datasets/other/run cannot be reached: " in refused.output

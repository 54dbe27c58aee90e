"""midsight extract with data and images in a bucket, against moto's S3 on loopback."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from midsight.buckets import connect
from midsight.buckets.path import to_place
from midsight.cli import app
from midsight.extraction import isolated
from midsight.extraction.job import look_ahead, make_job
from midsight.extraction.on_ray import Result, Worker, dataset_of
from midsight.extraction.orders import Call, make_orders
from midsight.extraction.request import Request, resolve
from midsight.extraction.task import make_task
from midsight.samples.tables import read_table
from midsight.store.attempts import Attempts
from midsight.store.reader import open_run
from support.buckets import BUCKET, ENVIRONMENT, serving_bucket
from support.pictures import encoded, picture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # moto warns of its own libraries
DATA, IMAGES = f"s3://{BUCKET}/data.jsonl", f"s3://{BUCKET}/images/"
ROWS = 12


@pytest.fixture(scope="module")
def store():
    with serving_bucket() as (endpoint, door):
        yield endpoint, door


@pytest.fixture
def door(store, monkeypatch, tmp_path):
    """The bucket, with a table and images, which are also in `tmp_path`."""
    endpoint, door = store
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(connect, "RETRIES", 1)
    connect.open_store.cache_clear()
    rows = [{"id": f"q{n}", "image": f"{n % 8}.png", "question": f"What is {n}?"} for n in range(ROWS)]
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "id": "lost", "image": "lost.png"}])
    (tmp_path / "data.jsonl").write_text(lines)
    to_place(DATA).write_bytes(lines.encode())
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture((48, 40 + number), number)))
        (to_place(IMAGES) / f"{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes())
    door.fault = lambda _: None
    yield door
    door.fault = lambda _: None
    connect.open_store.cache_clear()


def run_command(*arguments):
    options = ["--device", "cpu", "--layers", "0", "--no-answers", "--batch-size", "1"]
    return CliRunner().invoke(app, [*map(str, arguments), *options])


def test_a_broken_network_stops_the_run_and_the_same_command_completes_it(checkpoint, door, tmp_path):
    run_command("extract", tmp_path / "data.jsonl", "--model", checkpoint, "--out", tmp_path / "local")
    command = ["extract", DATA, "--images", IMAGES, "--model", checkpoint, "--out", tmp_path / "run"]
    door.fault = lambda asked: "500" if asked.method == "GET" and asked.key == "images/5.png" else None
    stopped = run_command(*command)
    assert stopped.exit_code == 3, stopped.output
    assert "s3://shelf/images/5.png cannot be reached: " in stopped.output
    assert "not-a-secret" not in stopped.output
    begun = open_run(tmp_path / "run")
    assert 0 < len(begun) < ROWS
    assert {failure.sample_id for failure in begun.failures()} <= {"lost"}
    door.fault = lambda _: None
    done = run_command(*command)
    assert done.exit_code == 1, done.output  # one image is not there
    assert "1 of 9 image files is missing: s3://shelf/images/lost.png" in stopped.output
    run, local = open_run(tmp_path / "run"), open_run(tmp_path / "local")
    assert [failure.sample_id for failure in run.failures()] == ["lost"]
    assert "The image s3://shelf/images/lost.png does not exist." in run.failures()[0].reason
    assert run.sample_ids() == local.sample_ids()
    for name in local.vector_columns:
        assert np.array_equal(run.matrix(name), local.matrix(name))
    assert (run.spec.dataset.path, run.spec.dataset.images) == (DATA, "s3://shelf/images")
    page = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")])
    assert "data:image/webp" in (tmp_path / "page.html").read_text(), page.output


def test_other_data_at_the_same_address_are_refused(checkpoint, door, tmp_path):
    command = ["extract", DATA, "--images", IMAGES, "--model", checkpoint, "--out", tmp_path / "run", "--limit", 2]
    assert run_command(*command).exit_code == 0
    to_place(DATA).write_bytes(to_place(DATA).read_bytes().replace(b"What", b"When"))
    refused = run_command(*command)
    assert refused.exit_code == 2
    assert "data" in refused.output


def test_a_suspect_is_tried_in_a_fork_though_its_image_is_in_a_bucket(door, model, tmp_path):
    """The clients of stores do not work in forks."""
    (tmp_path / "locks").mkdir()
    sample = read_table(DATA, midsight.DatasetOptions(images=IMAGES)).samples[0]
    request = resolve(Request(answers=False, layers=[0]), model.loaded)
    asked = len(door.requests)
    record = isolated.try_alone(model.loaded, request, sample, Attempts(tmp_path, (0, 1)))
    assert isinstance(record, midsight.Record)
    assert len(door.requests) == asked + 1
    lost = replace(sample, images=(to_place(IMAGES) / "none.png",))
    failure = isolated.try_alone(model.loaded, request, lost, Attempts(tmp_path, (0, 1)))
    assert isinstance(failure, midsight.Failure)
    assert "does not exist" in failure.reason


def test_a_worker_of_a_cluster_reads_the_bucket_itself(door, model, checkpoint, tmp_path):
    arguments = {"model": str(checkpoint), "out": tmp_path / "run", "layers": "0", "images": IMAGES, "answers": False}
    made = make_job(make_task(DATA, **arguments), model.loaded)
    orders = make_orders(dataset_of(made.task), look_ahead(made).work.todo, 2)
    worker = Worker(Call(DATA, arguments, {"device": "cpu"}, "auto", 60.0, made.task.data.sha256))
    results = [Result(**json.loads(text)) for text in worker({"order": [str(order) for order in orders]})["result"]]
    assert (sum(result.done for result in results), sum(result.failed for result in results)) == (ROWS, 1)
    door.fault = lambda asked: "500" if asked.key == "images/5.png" and asked.method == "GET" else None
    other = Worker(
        Call(DATA, {**arguments, "out": tmp_path / "other"}, {"device": "cpu"}, "auto", 60.0, made.task.data.sha256)
    )
    told = [Result(**json.loads(text)) for order in orders for text in other({"order": [str(order)]})["result"]]
    assert {(bool(result.error), result.resumable) for result in told} == {(True, True), (False, False)}

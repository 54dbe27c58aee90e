"""A running Ray cluster: by its address, into a bucket, and when its workers and nodes die of whatever they do."""

import json
import os
import threading
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from extraction.test_orders import write_table
from midsight.buckets import connect
from midsight.buckets.path import to_place
from midsight.cli import app
from midsight.errors import MidsightError
from midsight.extraction import on_ray
from midsight.extraction.orders import Call, Order
from midsight.extraction.ray_cluster import Pool, Ray, connected
from midsight.store.verify import verify_run
from support.buckets import BUCKET, ENVIRONMENT, serving_bucket
from support.ray_nodes import node_arguments, running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray has warnings of its own
DATA, OUT = f"s3://{BUCKET}/data.jsonl", f"s3://{BUCKET}/run"


@pytest.fixture(scope="module")
def bucket():
    """A bucket, which the environment names, for this process and for those that it starts."""
    with pytest.MonkeyPatch.context() as patch, serving_bucket() as (endpoint, door):
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        connect.open_store.cache_clear()
        yield door
        connect.open_store.cache_clear()


@pytest.fixture(scope="module")
def cluster(bucket):
    with running_cluster(2, gpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def pool(cluster):
    """Two workers of the cluster, to which this process is connected."""
    with connected(Ray(cluster.address, workers=2, gpus_per_worker=0)) as workers:
        yield workers


def test_a_running_cluster_extracts_by_its_address_from_a_bucket_into_it(cluster, model, checkpoint, tmp_path):
    """This test comes first, because the others connect this process to the cluster."""
    data = write_table(tmp_path)
    for file in (data, *tmp_path.glob("*.png")):
        to_place(f"s3://{BUCKET}/{file.name}").write_bytes(file.read_bytes())
    options = ["--layers", "0", "--max-new-tokens", "2", "--device", "cpu"]
    on_cluster = ["--ray", cluster.address, "--workers", "1"]
    done = CliRunner().invoke(
        app, [*map(str, ["extract", DATA, "--model", checkpoint, "--out", OUT, *options, *on_cluster])]
    )
    assert done.exit_code == 1, done.output
    assert "Ray starts 1 worker, each of which loads the model." in done.stderr
    assert "37 samples on 12 images" in done.stderr
    assert f"{OUT}: 36 samples stored, 1 failed." in done.stdout
    assert not verify_run(OUT).findings
    run = midsight.open_run(OUT)
    alone = midsight.extract(data, model=model, out=tmp_path / "alone", progress=None, layers="0", max_new_tokens=2)
    assert run.table().select(["sample_id", "answer"]).equals(alone.table().select(["sample_id", "answer"]))
    for name in alone.vector_columns:
        vectors, wanted = run.matrix(name), alone.matrix(name)
        assert (np.linalg.norm(vectors - wanted, axis=1) <= 1e-5 * np.linalg.norm(wanted, axis=1)).all()


def results_of(pool, monkeypatch, worker, orders=1):
    monkeypatch.setattr(on_ray, "Worker", worker)
    call = Call("data.jsonl", {}, {}, "auto", 60.0, None)
    numbers = range(orders)
    return [*on_ray.results([Order((number, orders), (number,), ()) for number in numbers], call, pool)]


def test_an_order_that_kills_every_worker_ends_the_call_as_resumable(pool, monkeypatch):
    class Dies:
        def __init__(self, *_):
            """Loads nothing."""

        def __call__(self, batch):
            os._exit(1)

    monkeypatch.setattr(on_ray, "MOST_TRIES", 2)
    with pytest.raises(MidsightError, match=r"^Workers died 2 times on the same samples, so the machines may") as error:
        results_of(pool, monkeypatch, Dies)
    assert error.value.resumable


def test_workers_that_die_while_they_load_end_the_call_too(pool, monkeypatch):
    class DiesAtOnce:
        def __init__(self, *_):
            os._exit(1)

        def __call__(self, batch):
            return batch

    monkeypatch.setattr(on_ray, "MOST_RESTARTS", 1)
    with pytest.raises(MidsightError, match="so the machines may be at fault") as error:
        results_of(pool, monkeypatch, DiesAtOnce)
    assert error.value.resumable


def test_workers_that_cannot_start_end_the_call_with_the_reason(pool, monkeypatch):
    class NotInstalled:
        def __init__(self, *_):
            import_module("no_such_package")

        def __call__(self, batch):
            return batch

    sentence = r"^A worker could not start \(ModuleNotFoundError: No module named 'no_such_package'\); install the same"
    with pytest.raises(MidsightError, match=sentence) as error:
        results_of(pool, monkeypatch, NotInstalled)
    assert error.value.resumable


def test_an_error_in_a_worker_is_raised_as_it_is(pool, monkeypatch):
    class Fails:
        def __init__(self, *_):
            """Loads nothing."""

        def __call__(self, batch):
            raise ZeroDivisionError("a bug")

    with pytest.raises(Exception, match="a bug") as error:
        results_of(pool, monkeypatch, Fails)
    assert not isinstance(error.value, MidsightError)


@pytest.mark.usefixtures("pool")
def test_each_worker_sees_its_own_gpu(monkeypatch, tmp_path):
    class Sees:
        def __init__(self, call, gpus, threads):
            self.folder, self.given = Path(call.folder), f"{gpus:g} and {threads}"

        def __call__(self, batch):
            (self.folder / f"{os.getpid()}").touch()
            while len([*self.folder.iterdir()]) < 2:  # so that each worker gets an order
                time.sleep(0.1)
            seen = {"node": f"{os.getpid()}: {os.environ['CUDA_VISIBLE_DEVICES']}", "notes": [self.given]}
            return {"result": [json.dumps(seen)]}

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = results_of(Pool(2, 1.0, 3), monkeypatch, Sees, orders=2)
    assert {one.node.split(": ")[1] for one in told} == {"0", "1"}
    assert {note for one in told for note in one.notes} == {"1 and 3"}


@pytest.mark.usefixtures("pool")
def test_the_order_of_a_node_that_is_lost_is_done_by_another(cluster, monkeypatch, tmp_path):
    """No other node has room for the lost worker until the others have nothing left to do."""

    class Works:
        def __init__(self, call, *_):
            self.folder = Path(call.folder)

        def __call__(self, batch):
            import ray

            for order in batch["order"]:
                number, node = json.loads(str(order))["shard"][0], ray.get_runtime_context().get_node_id()
                with (self.folder / "log").open("a") as log:
                    log.write(f"{number} {node}\n")
                time.sleep(0.5)
            return {"result": [json.dumps({"node": node, "done": number})]}

    monkeypatch.chdir(tmp_path)
    node = cluster.add_node(**node_arguments(1))

    def lose_it():
        while not any(line.endswith(node.node_id) for line in lines()):
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    def lines():
        return (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []

    losing = threading.Thread(target=lose_it)
    losing.start()
    told = results_of(Pool(3, 0.0, 1), monkeypatch, Works, orders=9)
    losing.join()
    assert sorted(one.done for one in told) == [*range(9)]
    begun = [line.split() for line in lines()]
    lost = [number for number, where in begun if where == node.node_id]
    assert lost[-1] in {number for number, where in begun if where != node.node_id}

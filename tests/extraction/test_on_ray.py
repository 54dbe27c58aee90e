"""A running Ray cluster: by its address, and when its workers die of whatever they do."""

import os
import subprocess
import sys

import pytest

import midsight
from extraction.test_orders import write_table
from midsight.errors import MidsightError
from midsight.extraction import on_ray
from midsight.extraction.orders import Call, Order
from midsight.extraction.ray_cluster import Ray, connected

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray has warnings of its own


@pytest.fixture(scope="module")
def pool():
    """The workers of a cluster on this machine, to which this process is connected."""
    with connected(Ray(workers=2)) as workers:
        yield workers


def test_a_running_cluster_extracts_by_its_address(pool, checkpoint, tmp_path):
    import ray

    data = write_table(tmp_path)
    address = ray.get_runtime_context().gcs_address
    options = ["--device", "cpu", "--layers", "0", "--max-new-tokens", "2", "--workers", "1"]
    command = [sys.executable, "-m", "midsight", "extract", data, "--model", checkpoint, "--out", tmp_path / "run"]
    on_loopback = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else Ray looks for it beyond
    done = subprocess.run(
        [*command, *options, "--ray", address], capture_output=True, text=True, env=on_loopback, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Ray starts 1 worker, each of which loads the model." in done.stderr
    assert "37 samples on 12 images" in done.stderr
    assert f"{tmp_path}/run: 36 samples stored, 1 failed." in done.stdout
    assert sorted(midsight.open_run(tmp_path / "run").table()["input_index"].to_pylist()) == [*range(36)]
    assert ray.is_initialized(), "the cluster was ended with the command"


def results_of(pool, monkeypatch, worker):
    monkeypatch.setattr(on_ray, "Worker", worker)
    call = Call("data.jsonl", {}, {}, "auto", 60.0, None)
    return [*on_ray.results([Order((number, 2), (number,), ()) for number in range(2)], call, pool)]


def test_an_order_that_kills_every_worker_ends_the_call_as_resumable(pool, monkeypatch):
    class Dies:
        def __init__(self, *_):
            """Loads nothing."""

        def __call__(self, batch):
            import os

            os._exit(1)

    monkeypatch.setattr(on_ray, "MOST_TRIES", 2)
    with pytest.raises(MidsightError, match=r"^Workers died 2 times on the same samples, so the machines may") as error:
        results_of(pool, monkeypatch, Dies)
    assert error.value.resumable


def test_workers_that_die_while_they_load_end_the_call_too(pool, monkeypatch):
    class DiesAtOnce:
        def __init__(self, *_):
            import os

            os._exit(1)

        def __call__(self, batch):
            return batch

    monkeypatch.setattr(on_ray, "MOST_RESTARTS", 1)
    with pytest.raises(MidsightError, match="so the machines may be at fault") as error:
        results_of(pool, monkeypatch, DiesAtOnce)
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

"""Work orders: which samples each has, what a worker makes of them, and what is refused before Ray starts."""

import json
import re
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

import midsight
from midsight import MidsightError, cli
from midsight.errors import BrokenOffError, CommitError
from midsight.extraction import on_ray
from midsight.extraction.display import Silent
from midsight.extraction.job import look_ahead, make_job
from midsight.extraction.on_ray import Result, Worker, agree_on_device, dataset_of, extract_on_ray, tell
from midsight.extraction.orders import Call, Order, make_orders
from midsight.extraction.ray_cluster import Pool, Ray, connect, find_room
from midsight.extraction.task import make_task
from midsight.extraction.todo import choose
from midsight.flags import as_flag
from midsight.samples.tables import read_table
from midsight.store.files import LOCKS
from midsight.store.lock import take_lock
from support.parity import relative_error
from support.pictures import encoded, picture

QUERY = "query_token_representation.layer_0"


def write_table(folder, images=12, questions=3):
    """A table with `questions` on each of `images`, and a row without a question."""
    total = images * questions
    rows = [{"image": f"{number % images}.png", "question": f"What is {number}?"} for number in range(total)]
    for number in range(images):
        (folder / f"{number}.png").write_bytes(encoded(picture((40, 32 + number), number)))
    table = folder / "data.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"image": "0.png", "question": ""}]))
    return table


@pytest.fixture
def data(tmp_path):
    return write_table(tmp_path)


def all_orders(table, workers=2, done=()):
    data = read_table(table)
    return data, make_orders(data, choose(data, done, shard=(0, 1), limit=None), workers)


def test_every_row_is_in_one_order_and_every_image_too(data):
    read, orders = all_orders(data)
    ids = [one for order in orders for one in order.ids(read)]
    assert sorted(ids) == sorted([*(sample.sample_id for sample in read.samples), read.failures[0].sample_id])
    images = [{read.samples[position].image_key for position in order.samples} for order in orders]
    assert sum(map(len, images)) == len(set().union(*images)) == 12
    assert len(orders) > 2
    assert {order.shard[1] for order in orders} == {8}
    assert [Order.parse(str(order)) for order in orders] == orders


def test_large_data_have_orders_of_a_few_hundred_whatever_the_number_of_workers(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(picture((32, 32), 0)))
    table = tmp_path / "data.jsonl"
    table.write_text("".join(f'{{"image": "{n // 10}.png", "question": "What?"}}\n' for n in range(4_800)))
    orders = all_orders(table, workers=3)[1]
    assert len(orders) == 12
    assert orders == all_orders(table, workers=1)[1]
    assert sum(order.size for order in orders) == 4_800
    assert 400 <= orders[0].size < 800


def test_what_is_done_is_in_no_order_and_the_shards_stay(data):
    read, orders = all_orders(data)
    first = set(orders[0].ids(read))
    _, later = all_orders(data, done=first)
    assert [order for order in later if order.shard == orders[0].shard] == []
    assert [order.shard for order in later] == [order.shard for order in orders[1:]]


def test_a_part_of_an_order_may_be_done(data):
    read, orders = all_orders(data)
    largest = orders[0]
    done = {read.samples[largest.samples[0]].sample_id}
    left = largest.todo(read, done)
    assert [row.sample_id for row in left.rows] == [one for one in largest.ids(read) if one not in done]
    assert (left.remaining, left.already) == (len(largest.samples) - 1, 1)


@pytest.fixture
def arguments(checkpoint, tmp_path):
    return {"model": str(checkpoint), "out": tmp_path / "run", "layers": "0", "max_new_tokens": 2}


def call_of(table, arguments, **changed):
    sha256 = make_task(table, **arguments).data.sha256
    return replace(Call(str(table), arguments, {"device": "cpu"}, "auto", 60.0, sha256), **changed)


def do(worker, *orders):
    return [Result(**json.loads(text)) for text in worker({"order": [*map(str, orders)]})["result"]]


@pytest.mark.slow
def test_a_worker_does_its_orders_once_each_though_one_is_given_twice(data, arguments, model, monkeypatch, tmp_path):
    made = make_job(make_task(data, **arguments), model.loaded)
    orders = make_orders(dataset_of(made.task), look_ahead(made).work.todo, 2)
    monkeypatch.setattr(on_ray, "open_model", lambda *_, **__: model.loaded)
    worker = Worker(call_of(data, arguments))
    told = do(worker, *orders, orders[0])
    assert (sum(one.done for one in told[:-1]), sum(one.failed for one in told[:-1])) == (36, 1)
    assert (told[-1].done, told[-1].failed) == (told[0].done, told[0].failed)
    assert [bool(one.about_model) for one in told] == [True] + [False] * len(orders)
    run = midsight.open_run(arguments["out"])
    assert (len(run), len(run.failures())) == (36, 1)
    alone = midsight.extract(data, model=model, out=tmp_path / "alone", progress=None, layers="0", max_new_tokens=2)
    assert run.table()["answer"].to_pylist() == alone.table()["answer"].to_pylist()
    for one, other in zip(run.matrix(QUERY), alone.matrix(QUERY), strict=True):
        assert relative_error(one, other) < 1e-5


@pytest.mark.slow
def test_a_worker_says_once_that_samples_fail_only_together(data, arguments, model, monkeypatch, together_fails):
    made = make_job(make_task(data, **arguments), model.loaded)
    orders = make_orders(dataset_of(made.task), look_ahead(made).work.todo, 2)
    monkeypatch.setattr(on_ray, "open_model", lambda *_, **__: model.loaded)
    told = do(Worker(call_of(data, arguments)), *orders)
    assert len(orders) > 1
    assert sum("failed (ValueError: a shape)" in sentence for one in told for sentence in one.about_model) == 1


def test_a_worker_says_in_one_sentence_why_it_cannot_work(data, arguments):
    """The sentence names options as the caller spells them, and what was resumable stays so."""
    order = Order((0, 1), (0,), ())
    (told,) = do(Worker(call_of(data, arguments, data="nope.jsonl")), order)
    with pytest.raises(MidsightError, match=r"^nope.jsonl does not exist; give a table file\.$"):
        tell(told, Silent(), set())
    (told,) = do(Worker(call_of(data, arguments, data_sha256="0")), order)
    with pytest.raises(MidsightError, match=r"data.jsonl has other content here than where the call was made") as error:
        tell(replace(told, node="node7"), Silent(), set())
    spelled = error.value.sentence(lambda option: f"<{option.name}>")
    assert spelled.startswith("On node7: ")
    assert spelled.endswith("; give <data> that all nodes share.")
    assert not error.value.resumable


def told_by(worker):
    """The sentence with which the worker says that it cannot work, as the command line spells it."""
    (told,) = do(worker, Order((0, 1), (0,), ()))
    with pytest.raises(MidsightError) as error:
        tell(told, Silent(), set())
    return error.value.sentence(as_flag)


def test_a_worker_without_the_folder_of_the_call_says_so(data, arguments, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    assert told_by(Worker(call_of(data, arguments, folder=nowhere))) == (
        f"The folder of the call, {nowhere}, cannot be entered here (No such file or directory); make the call in one "
        "that all nodes share."
    )


def test_a_gpu_that_torch_does_not_see_is_not_left_idle(data, arguments, model, monkeypatch):
    """Without this, a node whose driver is broken computes on its CPU, in another dtype."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(on_ray, "open_model", lambda *_, **__: model.loaded)
    assert told_by(Worker(call_of(data, arguments, loading={}), gpus=1.0)) == (
        "Ray gives this worker the GPU 3, and torch sees none; see to its driver and to torch, or take the CPU with "
        "--gpus-per-worker 0."
    )
    for loading, gpus in (({}, 0.0), ({"device": "cpu"}, 1.0)):
        (told,) = do(Worker(call_of(data, arguments, loading=loading), gpus), Order((0, 1), (), ()))
        assert told.error == []


@pytest.mark.parametrize(
    ("loading", "gpus", "agreed"),
    [
        ({}, None, ({}, None)),
        ({"device": "auto"}, None, ({"device": "auto"}, None)),
        ({"device": "cpu"}, None, ({"device": "cpu"}, 0)),
        ({"device": "cpu"}, 1, ({"device": "cpu"}, 1)),
        ({}, 0, ({"device": "cpu"}, 0)),
        ({"device": "auto"}, 0, ({"device": "cpu"}, 0)),
        ({"device": "cuda"}, 0.5, ({"device": "cuda"}, 0.5)),
    ],
)
def test_workers_on_a_cpu_take_no_gpu_and_workers_without_one_take_the_cpu(loading, gpus, agreed):
    call, where = agree_on_device(Call("", {}, loading, "auto", 60.0, None), Ray(gpus_per_worker=gpus))
    assert (call.loading, where.gpus_per_worker) == agreed


@pytest.mark.slow
def test_a_worker_whose_first_samples_all_fail_stops(tmp_path, arguments, model, monkeypatch):
    """Such a node would be the fastest, and take most of the orders."""
    table = tmp_path / "data.jsonl"
    table.write_text("".join(f'{{"image": "{n}.png", "question": "What?"}}\n' for n in range(130)))
    (tmp_path / "129.png").write_bytes(encoded(picture((32, 32), 1)))
    monkeypatch.setattr(on_ray, "open_model", lambda *_, **__: model.loaded)
    without, last = Order((0, 2), tuple(range(120)), ()), Order((1, 2), (129,), ())
    (told,) = do(Worker(call_of(table, arguments)), without)
    with pytest.raises(MidsightError, match=r"^On node7: The first 1\d\d samples all failed: ") as error:
        tell(replace(told, node="node7"), Silent(), set())
    assert error.value.resumable
    retried = {**arguments, "retry_failed": True}
    assert not any(one.error for one in do(Worker(call_of(table, retried)), last, without))
    assert not any(one.error for one in do(Worker(call_of(table, retried, keep_going=True)), without))


@pytest.fixture
def worker(data, arguments, model, monkeypatch):
    monkeypatch.setattr(on_ray, "open_model", lambda *_, **__: model.loaded)
    return Worker(call_of(data, arguments))


def test_a_full_disk_is_resumable(worker, monkeypatch):
    def fail(*_, **__):
        raise CommitError("The disk is full.")

    monkeypatch.setattr(on_ray, "fill", fail)
    (told,) = do(worker, Order((0, 1), (0,), ()))
    with pytest.raises(MidsightError, match=r"^The disk is full\.$") as error:
        tell(told, Silent(), set())
    assert error.value.resumable


def test_a_worker_without_its_device_ends_so_that_another_one_starts(worker, monkeypatch):
    def lose(*_, **__):
        raise BrokenOffError("The device is lost.")

    monkeypatch.setattr(on_ray, "fill", lose)
    monkeypatch.setattr(on_ray.os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="3"):
        do(worker, Order((0, 1), (0,), ()))


def test_an_order_waits_for_the_lock_of_a_worker_that_died(worker, arguments, monkeypatch, no_waiting):
    monkeypatch.setattr(on_ray, "fill", lambda *_, **__: None)
    order = Order((1, 8), (0,), ())
    do(worker, order)
    held = take_lock(arguments["out"] / LOCKS / "1-of-8.lock")
    threading.Timer(0.2, held.close).start()
    (told,) = do(worker, order)
    assert told.error == []
    held = take_lock(arguments["out"] / LOCKS / "1-of-8.lock")
    monkeypatch.setattr(on_ray, "LOCK_SECONDS", 0.1)
    (told,) = do(worker, order)
    held.close()
    assert "is being written by process" in told.error[0]


@pytest.fixture
def without_ray(model, monkeypatch):
    """The driver's part, with one worker in this process in place of a cluster."""

    @contextmanager
    def connect(where):
        yield Pool(where.workers, 0.0, 1)

    def work(orders, call, pool):
        worker = Worker(call)
        for order in orders:
            yield from do(worker, order)

    monkeypatch.setattr(on_ray, "open_model", lambda *_, **__: model.loaded)
    monkeypatch.setattr(on_ray, "connected", connect)
    monkeypatch.setattr(on_ray, "results", work)


class Shown(Silent):
    """Keeps what is shown."""

    def __init__(self):
        self.seen, self.said = [], []
        super().__init__(self.seen.append)

    def say(self, sentence):
        self.said.append(sentence)

    note = say


def drive(data, arguments, shown, *, keep_going=False):
    task = make_task(data, **arguments)
    call = call_of(data, arguments)
    return extract_on_ray(task, call, Ray(workers=2), None, keep_going=keep_going, shown=shown)


@pytest.mark.slow
def test_progress_of_all_workers_is_one_and_what_they_say_comes_once(data, arguments, without_ray):
    shown = Shown()
    run = drive(data, arguments, shown)
    assert (len(run), len(run.failures())) == (36, 1)
    numbers = [(one.done, one.failed, one.remaining) for one in shown.seen]
    assert (numbers[0], numbers[-1]) == ((0, 0, 37), (36, 1, 0))
    assert len(numbers) > 4
    assert shown.said[0] == "Ray starts 2 workers, each of which loads the model."
    assert len({*shown.said}) == len(shown.said)
    again = Shown()
    drive(data, arguments, again)
    assert (len(again.seen), again.said) == (1, [])


@pytest.mark.slow
def test_a_run_that_begins_with_failures_only_stops_unless_it_is_to_go_on(tmp_path, arguments, without_ray):
    table = tmp_path / "data.jsonl"
    table.write_text("".join(f'{{"image": "{n}.png", "question": "What?"}}\n' for n in range(110)))
    for n in range(110):
        (tmp_path / f"{n}.png").write_bytes(b"no image")
    with pytest.raises(MidsightError, match=r"^The first 110? samples all failed: .*retry_failed=True") as error:
        drive(table, arguments, Shown())
    assert error.value.resumable
    run = drive(table, arguments, Shown(), keep_going=True)
    assert len(run.failures()) == 110


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"data": [("a.png", "What?")]}, "ray needs data that every node can read; give data as a file or a folder."),
        ({"shard": (0, 2)}, "shard and ray both divide the data between processes; give one of them."),
        ({"commit_seconds": float("nan")}, "commit_seconds is nan; give a number from 0."),
    ],
)
def test_what_workers_could_not_share_is_refused(data, arguments, changed, sentence):
    with pytest.raises(MidsightError) as refused:
        midsight.extract(**{"data": data, **arguments, **changed}, ray=Ray())
    assert str(refused.value) == sentence
    assert not arguments["out"].exists()


def test_only_a_ray_is_one(data, arguments):
    where: Any = "auto"
    with pytest.raises(MidsightError, match=r"^ray is 'auto'; give a midsight.Ray, like midsight.Ray\('auto'\)\.$"):
        midsight.extract(data, **arguments, ray=where)


def test_a_model_in_memory_is_refused(data, arguments, model):
    with pytest.raises(MidsightError, match=r"^ray loads the model in every worker; give model as a folder or hub id"):
        midsight.extract(data, **{**arguments, "model": model}, ray=Ray())


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "where", "pool"),
    [
        ([node(CPU=8)], Ray(), Pool(1, 0.0, 8)),
        ([node(CPU=8), node(CPU=8), node(CPU=8, alive=False)], Ray(), Pool(2, 0.0, 8)),
        ([node(CPU=8), node(CPU=4), node()], Ray(), Pool(2, 0.0, 4)),
        ([node(CPU=8), node(CPU=4)], Ray(workers=3), Pool(3, 0.0, 4)),
        ([node(CPU=8)], Ray(workers=8), Pool(8, 0.0, 1)),
        ([node(CPU=8)], Ray(workers=3), Pool(3, 0.0, 2)),
        ([node(CPU=8, GPU=4), node(CPU=2, GPU=4), node(CPU=8)], Ray(), Pool(6, 1.0, 1)),
        ([node(CPU=64, GPU=4), node(CPU=64)], Ray(), Pool(4, 1.0, 16)),
        ([node(CPU=8, GPU=4)], Ray(gpus_per_worker=0.5), Pool(8, 0.5, 1)),
        ([node(CPU=8, GPU=4)], Ray(workers=2, gpus_per_worker=2), Pool(2, 2, 4)),
        ([node(CPU=8, GPU=4)], Ray(gpus_per_worker=0), Pool(1, 0, 8)),
    ],
)
def test_workers_are_as_many_as_fit_on_the_nodes_and_share_their_cpus(nodes, where, pool):
    assert find_room(nodes, where) == pool


@pytest.mark.parametrize(
    ("nodes", "where", "sentence"),
    [
        ([node(CPU=2)], Ray(workers=3), "The Ray cluster has 2 CPUs and 0 GPUs, which is room for 2, too few for "
         "workers=3 with 0 GPUs each; ask for fewer, or start more nodes."),
        ([node(CPU=9, GPU=1), node(CPU=9, GPU=1)], Ray(gpus_per_worker=2), "The Ray cluster has 18 CPUs and 2 GPUs, "
         "which is room for 0, too few for workers=1 with 2 GPUs each; ask for fewer, or start more nodes."),
    ],
)  # fmt: skip
def test_workers_that_no_node_has_room_for_are_refused(nodes, where, sentence):
    with pytest.raises(MidsightError) as refused:
        find_room(nodes, where)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"workers": 0}, "workers is 0; give 1 or more."),
        ({"workers": True}, "workers is True; give 1 or more."),
        ({"workers": 2.0}, "workers is 2.0; give 1 or more."),
        ({"gpus_per_worker": -1}, "gpus_per_worker is -1; give a whole number, or a part of one GPU like 0.5."),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker is 1.5; give a whole number, or a part of one GPU like 0.5."),
        ({"gpus_per_worker": float("inf")}, "gpus_per_worker is inf; give a whole number, or a part of one GPU like "
         "0.5."),
        ({"address": "ray://head:10001"}, "The address of the Ray cluster is 'ray://head:10001'; give auto or "
         "HOST:PORT on a machine of the cluster, or none to start one here."),
    ],
)  # fmt: skip
def test_values_that_no_cluster_takes_are_refused(wrong, sentence):
    with pytest.raises(MidsightError) as refused:
        Ray(**wrong)
    assert str(refused.value) == sentence


def call(*words):
    done = CliRunner().invoke(cli.app, ["extract", *map(str, words)], env={"COLUMNS": "200"})
    return done.exit_code, re.sub(r"\s+", " ", done.output).strip()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workers", 2], "Error: --workers needs --ray; add it, or leave both out."),
        (["--gpus-per-worker", 1], "Error: --gpus-per-worker needs --ray; add it, or leave both out."),
        (["--ray", "--workers", 0], "Error: --workers is 0; give 1 or more."),
        (["--ray", "auto", "--workers", 0], "Error: --workers is 0; give 1 or more."),
        (["--workers", -3, "--ray"], "Error: --workers is -3; give 1 or more."),
        (["--ray=ray://head:10001"], "Error: The address of the Ray cluster is 'ray://head:10001'; give auto or "
         "HOST:PORT on a machine of the cluster, or none to start one here."),
        (["--ray", "--shard", "0/2"], "Error: --shard and --ray both divide the data between processes; give one of "
         "them."),
    ],
)  # fmt: skip
def test_the_command_refuses_what_ray_cannot_do(data, arguments, words, sentence):
    given = ["--model", arguments["model"], "--out", arguments["out"]]
    assert call(data, *given, *words) == (2, sentence)
    assert call(*given, *words, data) == (2, sentence)


def test_a_dry_run_refuses_the_same(data, arguments):
    """`midsight slurm extract` gives every task a shard, and makes a dry run first."""
    words = ["--model", arguments["model"], "--out", arguments["out"], "--ray", "--shard", "0/2", "--dry-run"]
    assert call(data, *words)[0] == 2


def test_without_ray_the_sentence_names_the_extra(data, arguments, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    said = call(data, "--model", arguments["model"], "--out", arguments["out"], "--ray")
    assert said == (2, "Error: ray.data is not installed; install it with: pip install 'midsight[ray]'")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999", "no.such.host.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_named(address):
    with pytest.raises(MidsightError, match=rf"^No Ray cluster can be used at {address} \(.*\); give the address of a"):
        connect(None, address)

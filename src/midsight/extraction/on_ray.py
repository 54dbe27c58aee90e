"""An extraction by the workers of a Ray cluster, which get work orders and write their own parts."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from midsight.analysis import Run, open_run
from midsight.checkpoints.load_options import LoadKeywords
from midsight.checkpoints.loading import open_model
from midsight.errors import BrokenOffError, LockedError, MidsightError, Option, counted, first_line, quoted
from midsight.extraction.budget import make_budget
from midsight.extraction.display import Display
from midsight.extraction.fill import fill
from midsight.extraction.job import FIRST_SAMPLES, Start, all_failed, make_job, require_a_chance
from midsight.extraction.needs import estimate_needs
from midsight.extraction.orders import Call, Order, make_orders
from midsight.extraction.ray_cluster import Pool, Ray, connected
from midsight.extraction.run_job import tell_abstention
from midsight.extraction.stopping import EndNow, handling_signals
from midsight.extraction.task import Task, make_task, validate_batch_size, validate_commit_seconds
from midsight.extraction.work import Work, find_work, notes_of
from midsight.samples.tables import Dataset
from midsight.store.optional import import_optional
from midsight.store.writer import RunWriter

MOST_TRIES = 9
"""How often an order is done at most if workers die of it. Two samples that kill are set aside before that."""
MOST_RESTARTS = 20
"""How often a worker that dies is started again."""
LOCK_SECONDS = 120
"""Seconds that an order waits for the lock of a worker that died: a network file system may keep it for a minute."""
STOPPED = 3
"""Exit code of a worker that stops before its order is done."""


class Worker:
    """Loads the model once, and does one order after the other. Ray calls it."""

    def __init__(self, call: Call, gpus: float = 0, threads: int | None = None) -> None:
        """Ray gives it `gpus`; `threads` compute on a CPU, None for as many as the environment says."""
        if threads is not None:
            torch.set_num_threads(threads)
        self._call = call
        self._goes_on = call.keep_going
        self._problem: MidsightError | None = None
        self._about_model: list[str] = []
        self._told_of_calls = False
        try:
            self._load(gpus)
        except MidsightError as error:  # Ray would wrap it in its own, and start this worker again
            self._problem = error

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Does the orders of a batch.

        Args:
            batch: `order`: orders as JSON.

        Returns:
            `result`: a Result of each, as JSON.
        """
        results = [self._result(Order.parse(str(order))) for order in batch["order"]]
        return {"result": [json.dumps(asdict(result), default=str) for result in results]}

    def _load(self, gpus: float) -> None:
        enter(self._call.folder)
        task = make_task(self._call.data, **self._call.task)
        require_same_data(task, self._call)
        model = open_model(self._call.task["model"], **self._call.loading)
        require_gpu(gpus, model.device, self._call.loading)
        job = make_job(task, model).with_weights()
        self._job = job
        self._about_model = [*job.model.notes, *job.model.fixes]
        needs = estimate_needs(job.model.config, job.model.dtype, logits=job.request.reads_first_token)
        self._budget = make_budget(self._call.batch_size, job.model.device, needs)

    def _result(self, order: Order) -> Result:
        try:
            if self._problem is not None:
                raise self._problem
            # signals let `fill` commit, as in a local run
            with handling_signals(EndNow(STOPPED, lambda: "Stopped.")):
                return self._do(order)
        except BrokenOffError:
            os._exit(STOPPED)  # the device is lost to this process; Ray starts another one
        except MidsightError as error:
            parts = [[part.name, part.value] if isinstance(part, Option) else str(part) for part in error.args]
            return Result(node=platform.node(), error=parts, resumable=error.resumable)

    def _do(self, order: Order) -> Result:
        """Does an order, of which an earlier worker may have done a part."""
        job, data, notes, about_calls = self._job, dataset_of(self._job.task), list[str](), list[str]()
        with ExitStack() as held:
            writer = self._start_writing(order, held)
            job = self._job = job.as_started(writer.spec)
            todo = order.todo(data, writer.done)
            fill(
                writer,
                job,
                todo,
                budget=self._budget,
                keep_going=self._goes_on,
                on_progress=lambda _: None,
                note=notes.append,
                say=about_calls.append,
            )
            failed = len(writer.failed.intersection(order.ids(data)))
        self._goes_on = self._goes_on or failed < order.size
        about_model, self._about_model = self._about_model, []
        if not self._told_of_calls:
            about_model += about_calls
        self._told_of_calls = self._told_of_calls or bool(about_calls)
        return Result(
            node=platform.node(), done=order.size - failed, failed=failed, notes=notes, about_model=about_model
        )

    def _start_writing(self, order: Order, held: ExitStack) -> RunWriter:
        job, until = self._job, time.monotonic() + LOCK_SECONDS
        while True:
            writer = RunWriter(
                job.task.out,
                job.spec,
                shard=order.shard,
                retry_failed=job.task.retry_failed,
                commit_seconds=self._call.commit_seconds,
                reads_other_shards=False,
            )
            try:
                return held.enter_context(writer)
            except LockedError:
                if time.monotonic() >= until:
                    raise
                time.sleep(random.random())  # noqa: S311  (so that workers do not try all at once)


@dataclass(frozen=True)
class Result:
    """What came of an order."""

    node: str
    """Name of the machine."""
    done: int = 0
    """Number of samples that the run holds."""
    failed: int = 0
    """Number of samples that failed."""
    notes: Sequence[str] = ()
    """What a user should know about images."""
    about_model: Sequence[str] = ()
    """What a user should know about the model: with the first result of a worker, and once of its calls."""
    error: Sequence[str | Sequence[Any]] = ()
    """The parts of the sentence that says why the worker cannot do orders: texts, and options as name and value."""
    resumable: bool = False
    """Whether the same call can resume later in spite of that."""


def require_same_data(task: Task, call: Call) -> None:
    """Raises MidsightError if this machine has other data than the one that makes the orders."""
    if task.data.sha256 != call.data_sha256:
        raise MidsightError(
            f"{call.data} has other content here than where the call was made; give ",
            Option("data"),
            " that all nodes share.",
        )


def enter(folder: str) -> None:
    """Makes `folder` the working folder; raises MidsightError."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise MidsightError(
            f"The folder of the call, {folder}, cannot be entered here ({error.strerror}); make the call in one that "
            "all nodes share."
        ) from error


def require_gpu(gpus: float, device: torch.device, loading: LoadKeywords) -> None:
    """Raises MidsightError if Ray gives this worker an NVIDIA GPU, and torch would choose the CPU all the same."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and given and device.type == "cpu" and loading.get("device", "auto") == "auto":
        raise MidsightError(
            f"Ray gives this worker the GPU {given}, and torch sees none; see to its driver and to torch, or take the "
            "CPU with ",
            Option("gpus_per_worker", 0),
            ".",
        )


def agree_on_device(call: Call, where: Ray) -> tuple[Call, Ray]:
    """Workers on a CPU ask for no GPU, and workers that are to have no GPU take the CPU."""
    device = call.loading.get("device", "auto")
    if device == "cpu" and where.gpus_per_worker is None:
        return call, replace(where, gpus_per_worker=0)
    if device == "auto" and where.gpus_per_worker == 0:
        return replace(call, loading={**call.loading, "device": "cpu"}), where
    return call, where


def dataset_of(task: Task) -> Dataset:
    """The data of a task that `require_whole` has let pass."""
    assert isinstance(task.data, Dataset)  # noqa: S101
    return task.data


def extract_on_ray(task: Task, call: Call, where: Ray, work: Work | None, *, keep_going: bool, shown: Display) -> Run:
    """Does a task by the workers of a cluster, and returns its run.

    Args:
        task: The task; `require_whole` has let it pass.
        call: The same call, for the workers.
        where: The cluster.
        work: What is left of the task, if that is known.
        keep_going: Whether to go on even if the first samples all fail.
        shown: Shows the progress of all workers together.

    Returns:
        The opened run.

    Raises:
        MidsightError: The call cannot be carried out, the cluster cannot be used, or workers died on every try of an
            order.
    """
    validate_batch_size(call.batch_size)
    validate_commit_seconds(call.commit_seconds)
    # the sizes of its columns; only the workers have the device
    loading = {name: value for name, value in call.loading.items() if name != "device_map"}
    job = make_job(task, open_model(call.task["model"], **{**loading, "device": "cpu"}))
    work = work or find_work(task)
    progress = job.before(work.todo)
    shown.start(progress, notes_of(task, work))
    shown.progress(progress)
    if work.todo.is_empty:
        return open_run(task.out)
    if not keep_going:
        require_a_chance(job, Start(work, progress))
    call, where = agree_on_device(call, where)
    call = replace(call, keep_going=keep_going or progress.already > progress.already_failed)
    said = set[str]()
    with connected(where) as pool:
        orders = make_orders(dataset_of(task), work.todo, pool.workers)
        shown.say(f"Ray starts {counted(min(pool.workers, len(orders)), 'worker')}, each of which loads the model.")
        for result in results(orders, call, pool):
            tell(result, shown, said)
            progress = replace(progress, done=progress.done + result.done, failed=progress.failed + result.failed)
            shown.progress(progress)
            stored = progress.already - progress.already_failed + progress.done
            if not keep_going and not stored and progress.failed >= FIRST_SAMPLES:
                raise all_failed(open_run(task.out).failures(), recorded=True)
    shown.end(())
    run = open_run(task.out)
    for sentence in tell_abstention(run, job):
        shown.say(sentence)
    return run


def tell(result: Result, shown: Display, said: set[str]) -> None:
    """Says what a worker has to say and was not `said` before; raises MidsightError if it cannot do orders."""
    if result.error:
        where = "" if result.node == platform.node() else f"On {result.node}: "
        parts = [part if isinstance(part, str) else Option(*part) for part in result.error]
        raise (BrokenOffError if result.resumable else MidsightError)(where, *parts)
    for sentence in set(result.about_model) - said:
        shown.say(sentence)
    said.update(result.about_model)
    for sentence in result.notes:
        shown.note(sentence)


def results(orders: Sequence[Order], call: Call, pool: Pool) -> Iterator[Result]:
    """What came of each order, as soon as it is done; raises MidsightError if workers died on every try of one."""
    data: Any = import_optional("ray.data")
    exceptions: Any = import_optional("ray.exceptions")
    rows = [{"order": str(order)} for order in orders]
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, too
    dataset = data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False
    pool_of_actors = data.ActorPoolStrategy(
        size=min(pool.workers, len(rows)),
        max_tasks_in_flight_per_actor=1,  # a death costs one order a try, and no other one
        enable_true_multi_threading=True,  # with one call at a time: in the main thread, which gets signals
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray has no other way yet to say how often an actor starts again
        done = dataset.map_batches(
            Worker,
            fn_constructor_args=(call, pool.gpus, None if "OMP_NUM_THREADS" in os.environ else pool.threads),
            batch_size=1,
            compute=pool_of_actors,
            num_cpus=1,
            num_gpus=pool.gpus,
            max_restarts=MOST_RESTARTS,
            max_task_retries=MOST_TRIES - 1,
        )
    try:
        for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
            yield from (Result(**json.loads(str(text))) for text in batch["result"])
    except exceptions.RayTaskError:
        raise  # an error in midsight
    except exceptions.RayActorError as error:
        raise BrokenOffError(why_workers_died(error)) from error
    except exceptions.RayError as error:
        raise BrokenOffError(
            f"The Ray cluster broke off ({first_line(error)}); make the same call again to resume."
        ) from error


def why_workers_died(error: Any) -> str:
    """The sentence for Ray's error about a worker that it does not start again."""
    if error.actor_init_failed:
        reason = quoted(str(error).strip().rpartition("\n")[2])
        return f"A worker could not start ({reason}); install the same midsight on all nodes, and make the call again."
    return (
        f"Workers died {MOST_TRIES} times on the same samples, so the machines may be at fault ({first_line(error)}); "
        "see to their memory and GPUs, and make the same call again to resume."
    )

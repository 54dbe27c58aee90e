"""The Ray cluster whose workers extract: a running one, or one of this machine's own. torch is not imported."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from shutil import rmtree
from typing import Any

import psutil

from midsight.errors import MidsightError, Option, first_line
from midsight.extraction.stopping import stopping_on_signals
from midsight.store.optional import import_optional

ADDRESS = re.compile(r"auto|[^/\s]+:\d{1,5}")
"""Addresses of a running cluster, as `ray.init` takes them."""
START_SECONDS = 300
"""Seconds in which a cluster of this machine's own has to start."""
CONNECT_SECONDS = 10
"""Seconds in which a running cluster has to answer."""
COMMIT_SECONDS = 60
"""Seconds in which workers that are told to stop commit what they have computed."""
OBJECT_BYTES = 100 * 2**20
"""Memory for what Ray passes around: orders and counts, never images or vectors."""
UNASKED = {"RAY_IGNORE_UNHANDLED_ERRORS": "1"}
"""Environment in which Ray does not print the errors of its own actors, like its statistics', over the display."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers use this very environment, and make none of their own
    "RAY_prestart_worker_first_driver": "0",  # else as many processes as CPUs, which nobody needs
    "RAY_raylet_start_wait_time_s": f"{START_SECONDS}",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what goes wrong comes as an error of Python, too
    **UNASKED,
}
"""Environment of a cluster of this machine's own."""
LOOPBACK = "127.0.0.1"


@cache
def own_token() -> str:
    """What this process and its clusters show each other, so that no other user of this machine gets in."""
    return secrets.token_hex(32)


@dataclass(frozen=True)
class Ray:
    """Which Ray cluster extracts, and by how many workers (`pip install 'midsight[ray]'`).

    Args:
        address: Address of a running cluster, `auto` or HOST:PORT; None for the one that this process is connected to,
            or else one that is started on this machine and ended again.
        workers: Number of workers, each with a model of its own; None for as many as the cluster's GPUs allow, or
            for one on each node without GPUs.
        gpus_per_worker: GPUs of each worker; None for one if the cluster has any.

    Raises:
        MidsightError: A value that no cluster takes.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        if self.address is not None and not ADDRESS.fullmatch(self.address):
            raise MidsightError(
                f"The address of the Ray cluster is {self.address!r}; give auto or HOST:PORT on a machine of the "
                "cluster, or none to start one here."
            )
        if self.workers is not None and (type(self.workers) is not int or self.workers < 1):
            raise MidsightError(Option("workers"), f" is {self.workers!r}; give 1 or more.")
        gpus = self.gpus_per_worker
        if gpus is not None and not is_share_of_gpus(gpus):
            raise MidsightError(
                Option("gpus_per_worker"), f" is {gpus!r}; give a whole number, or a part of one GPU like 0.5."
            )


def is_share_of_gpus(gpus: Any) -> bool:
    """Whether Ray can give a worker so many GPUs."""
    is_number = isinstance(gpus, int | float) and not isinstance(gpus, bool)
    return is_number and math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus == int(gpus))


@dataclass(frozen=True)
class Pool:
    """The workers of an extraction on a cluster."""

    workers: int
    """Number of workers, each with one CPU as Ray counts them."""
    gpus: float
    """GPUs of each."""
    threads: int
    """Threads with which each computes on a CPU, so that together they use the CPUs of their nodes."""


@contextmanager
def connected(where: Ray) -> Iterator[Pool]:
    """Connects to the cluster, or starts one on this machine and ends it; gives the workers that it has room for.

    Signals that would end this process first let the workers of an own cluster commit. Raises MidsightError.
    """
    ray: Any = import_optional("ray")
    if where.address is None and ray.is_initialized():
        yield find_room(ray.nodes(), where)
    elif where.address is None:
        with own_cluster(ray, max(where.workers or 1, os.cpu_count() or 1)):
            yield find_room(ray.nodes(), where)
    else:
        connect(ray, where.address)
        try:
            with environment(UNASKED):
                yield find_room(ray.nodes(), where)
        finally:
            ray.shutdown()


def connect(ray: Any, address: str) -> None:
    """Connects to a running cluster; raises MidsightError."""
    host, _, port = address.rpartition(":")
    try:
        if host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with keeping_handler_of_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise MidsightError(
            f"No Ray cluster can be used at {address} ({first_line(error)}); give the address of a running one, or "
            "none to start one on this machine."
        ) from error


@contextmanager
def own_cluster(ray: Any, cpus: int) -> Iterator[None]:
    """A cluster on this machine, which only this machine can reach; raises MidsightError if it does not start."""
    # Ray's sockets lie in this folder, and their paths must be short.
    folder = tempfile.mkdtemp(prefix="midsight-ray-", dir="/tmp" if os.name == "posix" else None)  # noqa: S108
    try:
        # with a token in the environment, Ray writes none into the user's folder
        with (
            environment({**QUIET, "RAY_AUTH_TOKEN": own_token()}),
            stopping_on_signals(lambda: stop(ray, folder)),
        ):
            start(ray, folder, cpus)
            yield
    finally:
        every = processes_of(folder)  # after the shutdown they are nobody's children
        ray.shutdown()
        kill(every)
        rmtree(folder, ignore_errors=True)


def start(ray: Any, folder: str, cpus: int) -> None:
    """Starts a cluster that keeps its files in `folder`; raises MidsightError."""
    try:
        with keeping_handler_of_sigterm(), on_loopback(ray):
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address=LOOPBACK,
                _temp_dir=f"{folder}/ray",  # which Ray opens to everybody; the folder stays closed
            )
    except Exception as error:  # whatever Ray's many parts raise
        raise MidsightError(
            f"Ray did not start on this machine ({first_line(error)}); try again when it is less busy, or leave ",
            Option("ray"),
            " out.",
        ) from error
    if (address := ray.util.get_node_ip_address()) != LOOPBACK:
        raise MidsightError(
            f"Ray {ray.__version__} listens at {address}, where others can reach it; start a cluster that is closed to "
            "them, and give its address."
        )


@contextmanager
def on_loopback(ray: Any) -> Iterator[None]:
    """Lets Ray keep to the loopback address, as it does on macOS; on Linux it has no argument for that."""
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def stop(ray: Any, folder: str) -> None:
    """Ends the cluster with its files in `folder`, before this process ends at once; its workers commit first."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # that workers end is no news
    ray._private.auto_init_hook.enable_auto_connect = False  # the main thread would start the next cluster
    every = processes_of(folder)
    workers = [process for process in every if command_of(process).startswith("ray::MapWorker")]
    for process in workers:
        with suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(workers, timeout=COMMIT_SECONDS)
    every |= processes_of(folder)
    ray.shutdown()  # first, because a process that is connected ends with its cluster
    kill(every)
    rmtree(folder, ignore_errors=True)


def kill(processes: Collection[psutil.Process]) -> None:
    """Ends processes of Ray that have nothing left to do."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=COMMIT_SECONDS)


def processes_of(folder: str) -> set[psutil.Process]:
    """Processes below this one that name the folder in their command, and those that they started."""
    found: set[psutil.Process] = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if folder in command_of(process):
                found |= {process, *process.children(recursive=True)}
    return found


def command_of(process: psutil.Process) -> str:
    """The command line of a process, or what the process calls itself; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def find_room(nodes: Sequence[Mapping[str, Any]], where: Ray) -> Pool:
    """The workers that a cluster of these nodes is to have; raises MidsightError if too many."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    resources = [node for node in resources if node.get("CPU", 0) >= 1]
    gpus = where.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in resources) else 0.0
    room = sum(workers_on(node, gpus) for node in resources)
    workers = where.workers or (room if gpus else min(room, len(resources)))
    if not 1 <= workers <= room:
        has = " and ".join(f"{sum(node.get(name, 0) for node in resources):g} {name}s" for name in ("CPU", "GPU"))
        raise MidsightError(
            f"The Ray cluster has {has}, which is room for {room}, too few for ",
            Option("workers", max(1, workers)),
            f" with {gpus:g} GPUs each; ask for fewer, or start more nodes.",
        )
    cpus = [int(node["CPU"]) for node in resources if workers_on(node, gpus)]
    return Pool(workers, gpus, cpus_of_each(cpus, workers))


def workers_on(node: Mapping[str, float], gpus: float) -> int:
    """How many workers with one CPU and so many GPUs fit on a node with these resources."""
    fitting = int(node["CPU"])
    return min(fitting, int(node.get("GPU", 0) / gpus)) if gpus else fitting


def cpus_of_each(nodes: Sequence[int], workers: int) -> int:
    """The most CPUs that each of so many workers can have on nodes with these CPUs, or 1."""
    fitting = (cpus for cpus in range(max(nodes), 1, -1) if sum(node // cpus for node in nodes) >= workers)
    return next(fitting, 1)


@contextmanager
def environment(changed: Mapping[str, str]) -> Iterator[None]:
    """Adds variables to the environment for a while; those that the user has set stay."""
    before = {name: os.environ.get(name) for name in changed}
    for name, value in changed.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextmanager
def keeping_handler_of_sigterm() -> Iterator[None]:
    """Gives SIGTERM its handler back, which `ray.init` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

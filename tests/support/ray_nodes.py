"""A running Ray cluster on loopback, whose nodes are processes of this machine: it can lose one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import rmtree
from typing import Any
from unittest.mock import patch

from midsight.extraction.ray_cluster import LOOPBACK, OBJECT_BYTES, QUIET, environment, on_loopback, own_token


@contextmanager
def running_cluster(cpus: int, gpus: int = 0) -> Iterator[Any]:
    """Starts a cluster of one node with as many CPUs and made-up GPUs; gives ray's Cluster, and ends it afterwards.

    As long as it runs, Ray in this process keeps to the loopback address, and shows the cluster's token.
    """
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="midsight-ray-", dir="/tmp")  # paths of sockets must be short
    node = node_arguments(cpus)
    with (
        environment({**QUIET, "RAY_AUTH_TOKEN": own_token()}),
        on_loopback(ray),
        patch("ray._private.utils.write_ray_address"),  # it is nobody else's cluster
        patch("ray._common.utils.reset_ray_address"),
    ):
        cluster = Cluster()
        try:
            cluster.add_node(**node, num_gpus=gpus, include_dashboard=False, temp_dir=f"{folder}/ray")
            yield cluster
        finally:
            cluster.shutdown()
            rmtree(folder, ignore_errors=True)


def node_arguments(cpus: int) -> dict[str, Any]:
    """Arguments of Cluster.add_node for a node that only this machine can reach."""
    return {"num_cpus": cpus, "node_ip_address": LOOPBACK, "object_store_memory": OBJECT_BYTES}

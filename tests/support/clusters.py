"""Ray clusters of processes on this machine: nodes that a fake autoscaler starts and ends, or that are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HEAD_ID = "f" * 51 + "00000"
_HEAD_TYPE = "ray.head.default"  # the fake provider knows no other
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_START_S = 120.0


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def growing_cluster(folder: Path, workers: Mapping[str, Any], *, head_cpus: int = 1) -> Iterator[str]:
    """The address of a head node without workers, whose autoscaler starts nodes of these types on demand.

    `workers` holds node types as a cluster file does: ``{"cpu": {"resources": {"CPU": 2}, "max_workers": 2}}``.
    """
    from ray.util import get_node_ip_address

    port, host = free_port(), get_node_ip_address()  # where Ray's head will be, whatever the host's name says
    config = folder / "autoscaler.json"
    config.write_text(json.dumps(_config(f"{host}:{port}", workers, head_cpus)))
    log = folder / "head.log"
    words = [
        *("start", "--head", f"--port={port}", f"--num-cpus={head_cpus}", "--object-store-memory=150000000"),
        *(f"--autoscaling-config={config}", "--include-dashboard=false", "--disable-usage-stats", "--block"),
        *(f"--ray-client-server-port={free_port()}", f"--dashboard-port={free_port()}"),
    ]
    environment = {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
    }
    with log.open("wb") as stream:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    try:
        _wait_for(head, log)
        yield f"{host}:{port}"
    finally:
        _end(head)


def _config(gcs_address: str, workers: Mapping[str, Any], head_cpus: int) -> dict[str, Any]:
    types = {name: {"node_config": {}, "min_workers": 0, **one} for name, one in workers.items()}
    head = {"node_config": {}, "max_workers": 0, "resources": {"CPU": head_cpus}}
    empty: dict[str, Any] = {
        **{name: {} for name in ("file_mounts", "auth")},
        **{name: [] for name in ("cluster_synced_files", "initialization_commands", "setup_commands")},
        **{name: [] for name in ("head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
    }
    return {
        **empty,
        "cluster_name": "fake",
        "max_workers": sum(one["max_workers"] for one in workers.values()),
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": gcs_address,
            "head_node_id": _HEAD_ID,
            **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True),
            "launch_multiple": True,
        },
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "head_node_type": _HEAD_TYPE,
        "available_node_types": {_HEAD_TYPE: head, **types},
        "file_mounts_sync_continuously": False,
    }


def _wait_for(head: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while b"Ray runtime started" not in log.read_bytes():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def _end(head: subprocess.Popen[Any]) -> None:
    """Ends the head and all processes of its session, the nodes that its autoscaler started among them."""
    import psutil

    family = psutil.Process(head.pid).children(recursive=True)
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(30)
    except subprocess.TimeoutExpired:
        head.kill()
    _, alive = psutil.wait_procs(family, timeout=5)
    for one in alive:
        one.kill()


@contextmanager
def two_nodes(second: Mapping[str, str]) -> Iterator[str]:
    """The address of a cluster of a head and one more node, which has these variables in its environment."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False},
    )
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20, env_vars=dict(second))
        yield str(cluster.address)
    finally:
        cluster.shutdown()


@dataclass(frozen=True)
class FixedCluster:
    """A head without CPUs for work, and nodes that come and go by hand."""

    address: str
    raylets: list[int]
    """Process ids of the nodes' raylets, the head's first; without its raylet a node is lost."""
    process: subprocess.Popen[str]

    def add(self, cpus: int) -> None:
        """Adds a node."""
        self.raylets.append(int(self._ask(f"{cpus}")))

    def lose(self, index: int) -> None:
        """Kills a node's raylet, and with it the node."""
        os.kill(self.raylets[index], signal.SIGKILL)

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@contextmanager
def fixed_cluster(*cpus: int, head_cpus: int = 0) -> Iterator[FixedCluster]:
    """A head and nodes with so many CPUs each, as processes of this machine."""
    with subprocess.Popen(
        [sys.executable, "-m", "support.clusters", str(head_cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            address, raylet = process.stdout.readline().split()
            cluster = FixedCluster(address, [int(raylet)], process)
            for count in cpus:
                cluster.add(count)
            yield cluster
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
        finally:
            if process.poll() is None:
                _end(process)


def _keep(head_cpus: str) -> None:
    """Starts a head, and a node for each number of CPUs that is read; says the process ids of their raylets."""
    from ray.cluster_utils import Cluster

    def start(cpus: int) -> int:
        node = cluster.add_node(num_cpus=cpus, object_store_memory=150_000_000, include_dashboard=False)
        return int(node.all_processes["raylet"][0].process.pid)

    cluster = Cluster()
    raylet = start(int(head_cpus))
    print(cluster.address, raylet, flush=True)
    for line in sys.stdin:
        print(start(int(line)), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    _keep(*sys.argv[1:])

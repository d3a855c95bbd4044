"""What a Ray cluster can hold: the nodes that it has, and those that its autoscaler may add.

Requests are sized by nodes, never by sums over the cluster: an actor of 67 CPUs waits for ever for a node of 16.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from voxray.core.errors import ConfigError

NODE_TYPES = "VOXRAY_NODE_TYPES"
"""Environment variable with the node types that an autoscaler may add, where they cannot be read from Ray.

JSON, by name: ``{"gpu": {"resources": {"CPU": 16, "GPU": 1}, "max_workers": 8}}``.
"""

_HEAD_RESOURCE = "node:__internal_head__"
_READ_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class NodeShape:
    """The logical resources of one node."""

    cpus: float
    gpus: float = 0.0

    @staticmethod
    def of(resources: Mapping[str, float]) -> NodeShape:
        """The shape of a node with these resources, by Ray's names."""
        return NodeShape(float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0)))


@dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler may add."""

    name: str
    shape: NodeShape
    max_nodes: int


@dataclass(frozen=True)
class Capacity:
    """The nodes that a cluster has (`present`) and the further ones that may join (`possible`)."""

    present: tuple[NodeShape, ...]
    possible: tuple[NodeShape, ...] = ()
    is_known: bool = True
    """False where an autoscaler runs whose node types cannot be read: anything may come."""

    @property
    def nodes(self) -> tuple[NodeShape, ...]:
        """All nodes, present and possible."""
        return self.present + self.possible

    @property
    def cpus(self) -> float:
        """Logical CPUs of all nodes, present and possible."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes, present and possible."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        """The nodes in words: ``1 node of 4 CPUs, up to 8 more of 16 CPUs and 1 GPU``."""
        parts = [_counted(self.present)]
        if self.possible:
            parts.append(f"up to {_counted(self.possible, more=True)}")
        if not self.is_known:
            parts.append("and whatever nodes its autoscaler adds")
        return ", ".join(parts)


@dataclass(frozen=True)
class NodeTypes:
    """What an autoscaler may add: its worker types and the most workers of all types together."""

    workers: tuple[NodeType, ...] = ()
    max_workers: int | None = None
    is_known: bool = True


def capacity(present: Sequence[NodeShape], types: NodeTypes) -> Capacity:
    """The capacity of a cluster with these nodes, its head included, and these node types.

    A node that is present counts against the first type of its shape.
    """
    left = Counter(present)
    num_workers = max(0, len(present) - 1)
    most = sum(one.max_nodes for one in types.workers) if types.max_workers is None else types.max_workers
    room = max(0, most - num_workers)
    possible: list[NodeShape] = []
    for one in types.workers:
        here = min(left[one.shape], one.max_nodes)
        left[one.shape] -= here
        possible += [one.shape] * min(one.max_nodes - here, room - len(possible))
    return Capacity(tuple(present), tuple(possible), is_known=types.is_known)


def node_types(config: Mapping[str, Any]) -> NodeTypes:
    """The node types of an autoscaler's configuration (``cluster.yaml``, or what Ray makes of a `RayCluster`)."""
    head_type = config.get("head_node_type")
    found = config["available_node_types"]
    workers = tuple(
        NodeType(name, NodeShape.of(one.get("resources") or {}), int(one.get("max_workers", 0)))
        for name, one in found.items()
        if name != head_type
    )
    most = config.get("max_workers")
    return NodeTypes(tuple(one for one in workers if one.max_nodes > 0), None if most is None else int(most))


def stated_node_types(text: str) -> NodeTypes:
    """The node types that `VOXRAY_NODE_TYPES` states; a ConfigError where it cannot be read."""
    try:
        stated = json.loads(text)
        return node_types({"available_node_types": stated})
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"{NODE_TYPES}: is not a JSON object of node types ({error}); write for instance "
            f'{{"gpu": {{"resources": {{"CPU": 16, "GPU": 1}}, "max_workers": 8}}}}.'
        ) from None


def cluster_capacity() -> Capacity:
    """The capacity of the Ray cluster that this process has joined or started."""
    import ray

    present = tuple(NodeShape.of(node["Resources"]) for node in ray.nodes() if node["Alive"])
    stated = os.environ.get(NODE_TYPES)
    types = stated_node_types(stated) if stated else _types_of(ray.get_runtime_context().gcs_address)
    return capacity(present, types)


@lru_cache(maxsize=8)
def _types_of(gcs_address: str) -> NodeTypes:
    """The node types of the cluster at this address; they do not change while it lives."""
    import ray

    try:
        config = read_autoscaler(gcs_address)
        if config is None:  # this is not the head
            read = ray.remote(num_cpus=0, resources={_HEAD_RESOURCE: 0.001})(read_autoscaler)
            config = ray.get(read.remote(gcs_address), timeout=_READ_TIMEOUT_S)
        return node_types(config) if config else NodeTypes(is_known=config is not None)
    except Exception:  # whatever an autoscaler of another kind answers
        return NodeTypes(is_known=False)


def read_autoscaler(gcs_address: str) -> dict[str, Any] | None:
    """The autoscaler's configuration, read on the head node: empty without an autoscaler, None where it is hidden.

    It stands in the file that ``ray start --autoscaling-config`` was given, or in the `RayCluster` of KubeRay.
    """
    if os.environ.get("RAY_CLUSTER_NAME") and os.environ.get("KUBERNETES_SERVICE_HOST"):
        return _ray_cluster(os.environ["RAY_CLUSTER_NAME"])
    monitors = [words for words in _command_lines() if any("monitor.py" in word for word in words)]
    own = [words for words in monitors if f"--gcs-address={gcs_address}" in words]
    if not own:
        return None
    files = [word.partition("=")[2] for word in own[0] if word.startswith("--autoscaling-config=")]
    if not files:
        return {}
    read: dict[str, Any] = yaml.safe_load(Path(files[0]).expanduser().read_text())
    return read


def _ray_cluster(name: str) -> dict[str, Any] | None:
    """KubeRay's `RayCluster`, as Ray's own autoscaler reads it; None where this pod may not."""
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    try:
        client = node_provider.KubernetesHttpApiClient(namespace=account.read_text().strip())
        found = client.get(f"rayclusters/{name}")
        if not found["spec"].get("enableInTreeAutoscaling"):
            return {}
        config: dict[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(found)
        return config
    except Exception:  # no rights, no API server, a RayCluster of another version
        return None


def _command_lines() -> list[list[str]]:
    import psutil

    return [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]


def _counted(nodes: Sequence[NodeShape], *, more: bool = False) -> str:
    groups = Counter(nodes).items()
    return " and ".join(
        f"{number}{' more' if more else ''} node{'' if number == 1 else 's'} of {_described(shape)}"
        for shape, number in groups
    )


def _described(shape: NodeShape) -> str:
    cpus = f"{shape.cpus:g} CPU{'' if shape.cpus == 1 else 's'}"
    return f"{cpus} and {shape.gpus:g} GPU{'' if shape.gpus == 1 else 's'}" if shape.gpus else cpus

"""What a Ray cluster has been asked for and cannot give yet: of the cluster at hand, and over HTTP of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Bundle = tuple[tuple[str, float], ...]
"""One request: (resource, amount), by name."""


@dataclass(frozen=True)
class Demand:
    """What tasks, actors and placement groups ask of a cluster and it cannot give now, and what is being done."""

    missing: Mapping[Bundle, int] = field(default_factory=dict)
    """How many requests there are of each."""
    num_starting: int = 0
    """Nodes that the autoscaler is starting."""

    def __bool__(self) -> bool:
        return bool(self.missing)

    def __str__(self) -> str:
        """For instance ``2 x {GPU: 1}; 1 node is starting``."""
        nodes = {0: "no node is starting", 1: "1 node is starting"}
        return f"{self.requests}; {nodes.get(self.num_starting, f'{self.num_starting} nodes are starting')}"

    @property
    def requests(self) -> str:
        """For instance ``2 x {CPU: 1, GPU: 1}, 1 x {CPU: 4}``, the most frequent first; empty where nothing waits."""
        by_number = sorted(self.missing.items(), key=lambda one: (-one[1], one[0]))
        return ", ".join(f"{number} x {{{_in_words(bundle)}}}" for bundle, number in by_number)


def cluster_demand() -> Demand:
    """The unmet demand of the Ray cluster at hand, of all its jobs, as its autoscaler sees it."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    demands = status.resource_demands
    missing: Counter[Bundle] = Counter()
    for demand in (*demands.ray_task_actor_demand, *demands.placement_group_demand):
        for request in demand.bundles_by_count:
            # Ray adds names of its own for bundles and nodes.
            missing[bundle_of(request.bundle, only=("CPU", "GPU", "memory"))] += request.count
    starting = len(status.pending_nodes) + sum(launch.count for launch in status.pending_launches)
    return Demand(missing, starting)


def demand_at(address: str) -> Demand:
    """The unmet demand of all jobs of the cluster at a dashboard's address; which nodes start it does not say."""
    from ray.util.state import list_placement_groups, list_tasks

    asked: dict[str, Any] = {"address": address, "detail": True, "raise_on_missing_output": False}
    groups = list_placement_groups(filters=[("state", "=", "PENDING")], **asked)
    # An actor that waits is there as the task that makes it.
    tasks: list[Any] = list_tasks(filters=[("state", "=", "PENDING_NODE_ASSIGNMENT")], **asked)
    bundles = (bundle.get("unit_resources") or {} for group in groups for bundle in group.bundles or ())
    return Demand(counted([*bundles, *(one.required_resources or {} for one in tasks)]))


def counted(requests: Iterable[Mapping[str, float]]) -> Mapping[Bundle, int]:
    """Equal requests together; shares of a placement group, which waits itself, and those of nothing are left out."""
    bundles = (bundle_of(request) for request in requests if not any("_group_" in name for name in request))
    return Counter(bundle for bundle in bundles if bundle)


def bundle_of(request: Mapping[str, float], *, only: Iterable[str] | None = None) -> Bundle:
    """The request's amounts above 0, of all resources or `only` those."""
    names = sorted(request if only is None else set(only).intersection(request))
    return tuple((name, float(request[name])) for name in names if request[name])


def _in_words(bundle: Bundle) -> str:
    return ", ".join(f"{name}: {amount:g}" for name, amount in bundle) or "any node"

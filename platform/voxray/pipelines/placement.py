"""Where training workers find room: how many logical CPUs each takes, and whether a GPU.

Workers that take every CPU leave none for the tasks that feed them, and wait for ever; so room is left for those, and
a cluster that has none is told so before anything starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voxray.errors import ConfigError, ResourceError
from voxray.pipelines.cluster import cluster_total, require_cpus
from voxray.pipelines.stream import reader_cpus

SHARES = (16.0, 12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25)
"""Logical CPUs that a worker may take, the most first."""


@dataclass(frozen=True)
class Placement:
    """What each of `workers` takes."""

    workers: int
    cpus: float
    on_gpu: bool

    def resources(self) -> dict[str, float]:
        """Of each worker, by Ray's names."""
        return {"CPU": self.cpus, "GPU": 1.0} if self.on_gpu else {"CPU": self.cpus}


def place_workers(workers: int, gpus: int | None) -> Placement:
    """The placement on the Ray cluster at hand; a ResourceError where it can never hold the workers.

    `gpus` None takes a GPU per worker where there are any.
    """
    have = cluster_total("GPU")
    if gpus is not None and gpus not in (0, 1):
        raise ConfigError(f"gpus: a worker takes 0 or 1 GPU, got {gpus}; for more GPUs use more workers.")
    on_gpu = gpus == 1 or (gpus is None and have > 0)
    if on_gpu and have < workers:
        raise ResourceError(
            f"{workers} workers need {workers} GPUs, the cluster has {have:g}; use fewer workers, add nodes, or "
            f"train on CPUs with gpus=0."
        )
    share = fitting_share(_nodes(), workers, on_gpu=on_gpu)
    if share is None:
        share = 1.0
        require_cpus(
            workers * share + _spare(workers), f"Training with {workers} workers and the tasks that feed them"
        )
    return Placement(workers, share, on_gpu)


def fitting_share(nodes: Sequence[tuple[float, float]], workers: int, *, on_gpu: bool) -> float | None:
    """The most CPUs that each worker can take on nodes of (CPUs, GPUs), with room to spare for the feeding tasks."""
    total = sum(cpus for cpus, _ in nodes)
    for share in SHARES:
        room = sum(int(min(cpus // share, gpus if on_gpu else workers)) for cpus, gpus in nodes)
        if room >= workers and total - workers * share >= _spare(workers):
            return share
    return None


def _spare(workers: int) -> float:
    return max(1.0, reader_cpus(workers))


def _nodes() -> list[tuple[float, float]]:
    ray: Any = importlib.import_module("ray")
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(found.get("CPU", 0.0)), float(found.get("GPU", 0.0))) for found in alive]

"""Where training workers find room: how many logical CPUs each takes, and whether a GPU.

Workers that take every CPU leave none for the tasks that feed them, and wait for ever; so room is left for those, and
a cluster that has none is told so before anything starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voxray.core.errors import ConfigError, ResourceError
from voxray.distributed.cluster import cluster_total, require_cpus
from voxray.distributed.patch_stream import reader_cpus

SHARES = (16.0, 12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25)
"""Logical CPUs that a worker may take, the most first."""

CPUS_OF_WORKER, CPUS_OF_GPU_WORKER = 4.0, 1.0
"""Logical CPUs that a worker has at the least where trainings go side by side of their own accord."""


@dataclass(frozen=True)
class Placement:
    """What each of `workers` takes."""

    workers: int
    cpus: float
    on_gpu: bool
    shared: bool = False
    """Whether other trainings have a part of the same cores."""

    @property
    def max_threads(self) -> int | None:
        """Of torch in a worker; None: its part of the machine's cores."""
        return max(1, int(self.cpus)) if self.shared else None

    def resources(self) -> dict[str, float]:
        """Of each worker, by Ray's names."""
        return {"CPU": self.cpus, "GPU": 1.0} if self.on_gpu else {"CPU": self.cpus}


def place_workers(workers: int, gpus: int | None, *, share: int = 1) -> Placement:
    """The placement on the Ray cluster at hand; a ResourceError where it can never hold the workers.

    `gpus` None takes a GPU per worker where there are any. The workers of all trainings that `share` the cluster must
    find room at once, so that none waits for what another holds.
    """
    total = workers * share
    each = f"{share} trainings with {workers} workers each" if share > 1 else f"{workers} workers"
    have = cluster_total("GPU")
    if gpus is not None and gpus not in (0, 1):
        raise ConfigError(f"gpus: a worker takes 0 or 1 GPU, got {gpus}; for more GPUs use more workers.")
    on_gpu = gpus == 1 or (gpus is None and have > 0)
    if on_gpu and have < total:
        raise ResourceError(
            f"{each} need {total} GPUs, the cluster has {have:g}; use fewer workers, add nodes, or "
            f"train on CPUs, with a Ray that knows of no GPU (CUDA_VISIBLE_DEVICES=, or `ray start --num-gpus=0`)."
        )
    cpus = fitting_share(_nodes(), total, on_gpu=on_gpu)
    if cpus is None:
        cpus = 1.0
        doing = f"{each} and" if share > 1 else f"Training with {each} and"
        require_cpus(total * cpus + _spare(total), f"{doing} the tasks that feed them")
    return Placement(workers, cpus, on_gpu, shared=share > 1)


def trainings_at_once(most: int, workers: int) -> int:
    """How many of `most` trainings the Ray cluster at hand can hold side by side, at the least one.

    Each worker has a GPU to itself where there are GPUs, and else `CPUS_OF_WORKER`: with fewer, side by side is no
    faster than one after the other.
    """
    on_gpu = cluster_total("GPU") > 0
    return fitting_trainings(_nodes(), most, max(1, workers), on_gpu=on_gpu)


def fitting_trainings(nodes: Sequence[tuple[float, float]], most: int, workers: int, *, on_gpu: bool) -> int:
    """The most trainings that nodes of (CPUs, GPUs) hold side by side."""
    enough = CPUS_OF_GPU_WORKER if on_gpu else CPUS_OF_WORKER
    for number in range(most, 1, -1):
        cpus = fitting_share(nodes, workers * number, on_gpu=on_gpu)
        if cpus is not None and cpus >= enough:
            return number
    return 1


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
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(found.get("CPU", 0.0)), float(found.get("GPU", 0.0))) for found in alive]

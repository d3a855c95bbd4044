"""How much each training worker and each actor of a pool takes: logical CPUs that fit its node, and whether a GPU.

Workers that take every CPU leave none for the tasks that feed them, and wait for ever; so room is left for those on
every node with workers, and a cluster that can never have it is told so before anything starts. A cluster that can
grow is sized by the nodes that it may add, and the request itself makes them come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from voxray.core.errors import ConfigError, ResourceError
from voxray.distributed.capacity import Capacity, NodeShape, cluster_capacity
from voxray.distributed.patch_stream import READER_CPUS

SHARES = (16.0, 12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25)
"""Logical CPUs that a training worker may take, the most first."""

SHARES_WITH_GPU = (1.0, 0.5, 0.25)
"""The same of a worker with a GPU: it drives the GPU, and its readers take the node's other CPUs."""

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
    fewest: int | None = None
    """Of workers, where fewer than all will do."""

    @property
    def at_least(self) -> int:
        """Workers without which it does not go on."""
        return self.workers if self.fewest is None else self.fewest

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.at_least < self.workers

    @property
    def span(self) -> int | tuple[int, int]:
        """The number of workers as Ray Train takes it."""
        return (self.at_least, self.workers) if self.is_elastic else self.workers

    @property
    def max_threads(self) -> int | None:
        """Of torch in a worker; None: its part of the machine's cores."""
        return max(1, int(self.cpus)) if self.shared and not self.on_gpu else None

    def resources(self) -> dict[str, float]:
        """Of each worker, by Ray's names."""
        return {"CPU": self.cpus, "GPU": 1.0} if self.on_gpu else {"CPU": self.cpus}


def place_workers(workers: int, gpus: int | None, *, share: int = 1, at_least: int | None = None) -> Placement:
    """The placement on the Ray cluster at hand; a ResourceError where it can never hold the workers.

    `gpus` None takes a GPU per worker where there are any, or may be. The workers of all trainings that `share` the
    cluster must find room at once, so that none waits for what another holds. Where `at_least` so many will do, the
    placement has as many of `workers` as the cluster can ever hold.
    """
    if gpus is not None and gpus not in (0, 1):
        raise ConfigError(f"gpus: a worker takes 0 or 1 GPU, got {gpus}; for more GPUs use more workers.")
    return placement(cluster_capacity(), workers, gpus, share=share, at_least=at_least)


def placement(
    capacity: Capacity, workers: int, gpus: int | None, *, share: int = 1, at_least: int | None = None
) -> Placement:
    """The placement on a cluster of that capacity; a ResourceError where it can never hold the workers."""
    if at_least is not None and at_least < workers:
        for number in range(workers, at_least, -1):
            with suppress(ResourceError):
                return replace(placement(capacity, number, gpus, share=share), fewest=at_least)
        return placement(capacity, at_least, gpus, share=share)
    total = workers * share
    on_gpu = gpus == 1 or (gpus is None and capacity.gpus > 0)
    cpus = fitting_share(capacity.nodes, total, on_gpu=on_gpu)
    if cpus is None and capacity.is_known:
        each = f"{share} trainings with {workers} workers each" if share > 1 else f"{workers} workers"
        raise ResourceError(_does_not_fit(capacity, each, total, on_gpu=on_gpu))
    return Placement(workers, cpus or 1.0, on_gpu, shared=share > 1)


def require_cpus(needed: float, what: str) -> None:
    """A ResourceError unless one node can ever have that many logical CPUs; say in `what` who needs them."""
    found = cluster_capacity()
    if found.is_known and max((node.cpus for node in found.nodes), default=0.0) + 1e-6 < needed:
        raise ResourceError(
            f"{what} needs {needed:g} logical CPUs on one node, the cluster can have {found.cpus:g} ({found}): it "
            f"would wait for ever. Use fewer or smaller workers, add nodes, or start Ray with more logical CPUs "
            f"(`ray start --head --num-cpus={math.ceil(needed)}`; they may outnumber the cores)."
        )


def trainings_at_once(most: int, workers: int) -> int:
    """How many of `most` trainings the Ray cluster at hand can hold side by side, at the least one.

    Each worker has a GPU to itself where there are GPUs, and else `CPUS_OF_WORKER`: with fewer, side by side is no
    faster than one after the other.
    """
    found = cluster_capacity()
    return fitting_trainings(found.nodes, most, max(1, workers), on_gpu=found.gpus > 0)


def fitting_trainings(nodes: Sequence[NodeShape], most: int, workers: int, *, on_gpu: bool) -> int:
    """The most trainings that nodes hold side by side."""
    enough = CPUS_OF_GPU_WORKER if on_gpu else CPUS_OF_WORKER
    for number in range(most, 1, -1):
        cpus = fitting_share(nodes, workers * number, on_gpu=on_gpu)
        if cpus is not None and cpus >= enough:
            return number
    return 1


def fitting_share(nodes: Sequence[NodeShape], workers: int, *, on_gpu: bool) -> float | None:
    """The most CPUs that each training worker can take, with room for its feeding tasks on its own node."""
    for share in SHARES_WITH_GPU if on_gpu else SHARES:
        if sum(_workers_on(node, share, on_gpu=on_gpu) for node in nodes) >= workers:
            return share
    return None


def _workers_on(node: NodeShape, share: float, *, on_gpu: bool) -> int:
    """How many workers of that share a node holds beside their readers, for which one CPU is left at the least."""
    by_cpus = min((node.cpus - 1.0) // share, node.cpus // (share + READER_CPUS))
    return max(0, int(min(by_cpus, node.gpus) if on_gpu else by_cpus))


def actor_cpus(nodes: Sequence[NodeShape], actors: int, *, on_gpu: bool) -> float | None:
    """The most CPUs that each of a pool's actors can take, one left in the cluster for other tasks; None: no room.

    Whole numbers above 1, which torch uses as its threads. With a GPU each, an actor takes its part of a node's CPUs.
    """
    total = sum(node.cpus for node in nodes)
    spare = max(total - 1.0, 0.5)
    most = max((node.cpus for node in nodes), default=0.0)
    whole = range(int(min(most, spare / actors)), 0, -1)
    fraction = round(min(spare / actors, 0.99) - 5e-5, 4)
    for share in (*map(float, whole), *(round(fraction / part, 4) for part in (1, 2, 4))):
        room = (min(node.cpus // share, node.gpus) if on_gpu else node.cpus // share for node in nodes)
        if sum(map(int, room)) >= actors:
            return share
    return None


def _does_not_fit(capacity: Capacity, each: str, total: int, *, on_gpu: bool) -> str:
    if on_gpu and capacity.gpus < total:
        return (
            f"{each} need {total} GPUs, the cluster can have {capacity.gpus:g} ({capacity}); use fewer workers, or "
            f"add nodes."
        )
    least = (SHARES_WITH_GPU if on_gpu else SHARES)[-1] + READER_CPUS
    needed = max(2.0, math.ceil(total * least))
    return (
        f"{each} and the tasks that feed them need {needed:g} logical CPUs on nodes with room for "
        f"both, the cluster can have {capacity.cpus:g} ({capacity}): they would wait for ever. Use fewer workers, "
        f"add nodes, or start Ray with more logical CPUs (`ray start --head --num-cpus={needed:g}`; they may "
        f"outnumber the cores)."
    )

"""The same work on many items: in this process, or on Ray actors that each hold what the work needs.

    with hire(workers, device="auto") as crew:
        for result in spread(make_work, items, crew):

Items go to whichever worker is free, so one slow scan holds up nobody; an actor that dies with its node is started
again and its item with it.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from voxray.errors import ConfigError, ResourceError, VoxrayError
from voxray.inference.device import choose_device
from voxray.inference.sliding import in_turn
from voxray.pipelines.cluster import cluster_total, connect

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_RESTARTS = 3
"""How often an actor is started again before its loss is reported."""


@dataclass(frozen=True)
class Crew:
    """Who does the work: this process, or so many actors, each with `num_cpus` and, for CUDA, a GPU of its own."""

    workers: int
    device: str
    num_cpus: float
    on_ray: bool


@contextmanager
def hire(workers: int, *, device: str = "cpu") -> Iterator[Crew]:
    """The crew: this process for one worker without a cluster, else actors of the cluster or of a local Ray.

    The device ``auto`` is CUDA where every worker can have a GPU to itself, else the CPU.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}; 1 without a cluster is this process.")
    if workers == 1 and not os.environ.get("RAY_ADDRESS"):
        yield Crew(1, str(choose_device(device)), num_cpus=0.0, on_ray=False)
        return
    with connect():
        gpus = cluster_total("GPU")
        chosen = ("cuda" if gpus >= workers else "cpu") if device == "auto" else device.split(":")[0]
        if chosen == "cuda" and gpus < workers:
            raise ResourceError(
                f"{workers} workers on CUDA need a GPU each, the cluster has {gpus:g}; use fewer, or the device cpu."
            )
        yield Crew(workers, chosen, num_cpus=cpu_share(cluster_total("CPU"), workers), on_ray=True)


def spread(
    make: Callable[[], Callable[[Item], Result]], items: Sequence[Item], crew: Crew, *, at_once: int = 1
) -> Iterator[Result]:
    """Each item's result as it is ready; `make` builds the work once per worker.

    Each worker has so many items under way `at_once`, in threads: the work must bear that. In this process the
    results come in the items' order.
    """
    if not items:
        return
    if crew.on_ray:
        yield from _on_actors(make, items, crew, at_once)
    else:
        yield from in_turn(make(), items, workers=at_once)


def cpu_share(total: float, workers: int) -> float:
    """CPUs per actor, one left for everything else; whole numbers above 1, which torch uses as its threads."""
    share = max(total - 1.0, 0.5) / workers
    return float(int(share)) if share >= 1 else round(share - 5e-5, 4)


def _on_actors(
    make: Callable[[], Callable[[Item], Result]], items: Sequence[Item], crew: Crew, at_once: int
) -> Iterator[Result]:
    from ray.util import ActorPool

    ray: Any = importlib.import_module("ray")
    kind = ray.remote(
        num_cpus=crew.num_cpus,
        num_gpus=1.0 if crew.device == "cuda" else 0.0,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
        max_concurrency=at_once,
    )(_Holder)
    made = ray.put(make)
    actors = [kind.remote() for _ in range(min(crew.workers, len(items)))]
    try:
        pool: Any = ActorPool(actors * at_once)
        yield from pool.map_unordered(lambda actor, item: actor.answer.remote([made], item), items)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VoxrayError):
            raise error.cause from error
        raise
    finally:
        for actor in actors:
            ray.kill(actor)


class _Holder:
    """What an actor is: the work, built once.

    The recipe for it comes with each item, as a reference within a list: an actor that is started again would not
    find it among its constructor's arguments.
    """

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None
        self._making = threading.Lock()

    def answer(self, made: list[Any], item: Any) -> Any:
        """The result for one item."""
        with self._making:
            if self._work is None:
                self._work = importlib.import_module("ray").get(made[0])()
        return self._work(item)

"""The same work on many items, in parallel: `pool_map` where a worker must first make what the work needs, such as a
network on a GPU, and `task_map` where any process can do it.

    with open_pool(workers, progress=progress) as pool:
        for result in pool_map(make_work, items, pool):

    with connect(), closing(task_map(work, items, TaskOptions(retries=2))) as results:
        for item, result in results:

A pool is this process, or actors that Ray Data feeds: items go to whichever is free, so one slow scan holds up
nobody, and an actor that dies with its node is started again, and its item with it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pyarrow as pa

from voxray.core.bulkhead import log_fault, refusal_in
from voxray.core.errors import ConfigError, ResourceError, VoxrayError
from voxray.core.progress import Progress
from voxray.distributed.cancellation import Switch, ends_at
from voxray.distributed.capacity import Capacity, cluster_capacity
from voxray.distributed.cluster import connect
from voxray.distributed.errors import find_raised
from voxray.distributed.metrics import count_restart, count_retry
from voxray.distributed.placement import actor_cpus
from voxray.distributed.watchdog import has_living_actors, listener, wait_limit_s, watched
from voxray.inference.sliding import in_turn
from voxray.runtimes.device import choose_device

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Value = TypeVar("_Value")

MAX_RESTARTS = 3
"""How often an actor is started again before its loss is reported."""
DIED = (
    f"the worker that had it died {MAX_RESTARTS + 1} times, probably for want of memory. Use fewer workers, or a "
    f"machine with more."
)
"""What became of an item that its workers died of."""
TICK_S = 1.0
"""How often `task_map` calls its `tick`."""


@dataclass(frozen=True)
class WorkerPool:
    """Who does the work: this process, or so many actors, each with `num_cpus` and, for CUDA, a GPU of its own."""

    workers: int
    device: str
    num_cpus: float
    on_ray: bool
    progress: Progress
    """Is told what the pool waits for."""


@contextmanager
def open_pool(workers: int, *, progress: Progress, device: str = "cpu") -> Iterator[WorkerPool]:
    """This process for one worker without a cluster, else actors of the cluster or of a local Ray.

    The device ``auto`` is CUDA where every worker can have a GPU to itself, be it on nodes that must come first, else
    the CPU. What the pool waits for is said to `progress`.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}; 1 without a cluster is this process.")
    if workers == 1 and not os.environ.get("RAY_ADDRESS"):
        yield WorkerPool(1, str(choose_device(device)), num_cpus=0.0, on_ray=False, progress=progress)
        return
    with connect():
        chosen, num_cpus = pool_shape(cluster_capacity(), workers, device)
        yield WorkerPool(workers, chosen, num_cpus, on_ray=True, progress=progress)


def pool_shape(capacity: Capacity, workers: int, device: str) -> tuple[str, float]:
    """(device, logical CPUs) of each actor of a pool; a ResourceError where the cluster can never hold them."""
    chosen = ("cuda" if capacity.gpus >= workers else "cpu") if device == "auto" else device.split(":")[0]
    num_cpus = actor_cpus(capacity.nodes, workers, on_gpu=chosen == "cuda")
    if num_cpus is not None:
        return chosen, num_cpus
    if capacity.is_known:
        raise ResourceError(
            f"{workers} workers on CUDA need a GPU and a CPU each, the cluster can have {capacity.gpus:g} GPUs "
            f"({capacity}); use fewer, or the device cpu."
        )
    return chosen, 1.0


def pool_map(
    make: Callable[[], Callable[[_Item], _Result]],
    items: Sequence[_Item],
    pool: WorkerPool,
    *,
    at_once: int = 1,
    lost: Callable[[_Item], _Result] | None = None,
) -> Iterator[_Result]:
    """Each item's result as it is ready; `make` builds the work once per worker.

    An item whose worker dies again and again, as for want of memory, has the result that `lost` gives, and the others
    have theirs; without `lost` it ends everything.

    Each worker has so many items under way `at_once`, in threads: the work must bear that. In this process the
    results come in the items' order.
    """
    if not items:
        return
    if pool.on_ray:
        yield from _on_actors(make, items, pool, at_once, lost)
    else:
        yield from in_turn(make(), items, workers=at_once)


class Shared(Generic[_Value]):
    """A value in Ray's object store, which a process unpacks once; one that comes to another value forgets it."""

    def __init__(self, value: _Value) -> None:
        import ray

        self._reference: ObjectRef[_Value] = ray.put(value)

    def open(self) -> _Value:
        """The value, wherever this runs."""
        import ray

        name = self._reference.hex()
        if name not in _OPENED:
            _OPENED.clear()
            _OPENED[name] = ray.get(self._reference)
        value: _Value = _OPENED[name]
        return value


_OPENED: dict[str, Any] = {}


@dataclass(frozen=True)
class TaskOptions:
    """How the tasks of a `task_map` run."""

    retries: int
    """How often an item is tried again whose process died, after all others were begun."""
    num_cpus: float = 1.0
    at_once: int | None = None
    """Tasks that Ray holds at once; None: twice as many as find CPUs, so that none of these waits for work."""
    scheduling: str | NodeAffinitySchedulingStrategy = "DEFAULT"
    grace_s: float = 0.0
    """How long tasks that are cancelled may take to end before they are killed."""


def task_map(
    work: Callable[[_Item], _Result] | Shared[Callable[[_Item], _Result]],
    items: Sequence[_Item],
    options: TaskOptions,
    *,
    lost: Callable[[_Item, Exception], _Result] | None = None,
    tick: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> Generator[tuple[_Item, _Result]]:
    """Each item with its result, as it is ready, from tasks of the Ray that was joined or started.

    An item that no task answers, because its process dies again and again, has the result that `lost` gives; without
    `lost` it ends everything, as does what the work raises. However it ends, tasks under way are cancelled: close it.
    `tick` is called every second; what tasks wait for while none is answered is said to `progress`.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    shared = work if isinstance(work, Shared) else Shared(work)
    # Ray's own retries count a lack of memory apart, and would try at once what others leave no memory for.
    task = ray.remote(num_cpus=options.num_cpus, max_retries=0, scheduling_strategy=options.scheduling)(_do)
    at_once = options.at_once or 2 * max(1, int(cluster_capacity().cpus / options.num_cpus))
    waiting = deque((item, 1) for item in items)
    running: dict[ObjectRef[_Result], tuple[_Item, int]] = {}
    with _cancelled_at_end(running, options.grace_s), _watched_tasks(progress, waiting, running):
        while waiting or running:
            while waiting and len(running) < at_once:
                item, attempt = waiting.popleft()
                running[task.remote(shared, item)] = item, attempt
            ready, _ = ray.wait(list(running), timeout=TICK_S)
            tick()
            for reference in ready:
                item, attempt = running.pop(reference)
                try:
                    result = ray.get(reference)
                except RayError as error:
                    if attempt <= options.retries and not isinstance(error, RayTaskError | TaskCancelledError):
                        waiting.append((item, attempt + 1))
                        count_retry("task")
                        continue
                    if lost is None:
                        raise (find_raised(error, VoxrayError) or error) from None
                    result = lost(item, error)
                yield item, result


def _do(work: Shared[Callable[[_Item], _Result]], item: _Item) -> _Result:
    return work.open()(item)


def _watched_tasks(
    progress: Progress | None, waiting: Collection[object], running: Collection[object]
) -> AbstractContextManager[None]:
    return watched(listener(progress), lambda: len(waiting) + len(running))


@contextmanager
def _cancelled_at_end(running: Mapping[ObjectRef[Any], object], grace_s: float) -> Iterator[None]:
    try:
        yield
    finally:
        _cancel(list(running), grace_s)


def _cancel(references: Sequence[ObjectRef[Any]], grace_s: float) -> None:
    """As Ctrl-C would, and by force where that does not help."""
    import ray

    for reference in references:
        ray.cancel(reference)
    _, left = ray.wait(references, num_returns=len(references), timeout=grace_s) if references else ((), ())
    for reference in left:
        with suppress(Exception):
            ray.cancel(reference, force=True)


def _on_actors(
    make: Callable[[], Callable[[_Item], _Result]],
    items: Sequence[_Item],
    pool: WorkerPool,
    at_once: int,
    lost: Callable[[_Item], _Result] | None,
) -> Iterator[_Result]:
    stop = Switch()
    results = _results(make, items, pool, at_once=at_once, stop=stop, may_lose=lost is not None)
    missing = dict(enumerate(items))
    waits = watched(
        listener(pool.progress),
        lambda: len(missing),
        limit_s=wait_limit_s(),
        stop=stop.on,
        works=has_living_actors,
    )
    try:
        with waits:
            for table in results:
                for row in table.to_pylist():
                    result = _unpacked(row["result"])
                    if isinstance(result, _Raised):
                        raise result.error
                    del missing[row["number"]]
                    yield result
        for item in missing.values():
            assert lost is not None
            yield lost(item)
    finally:
        stop.on()
        with suppress(Exception):
            deque(results, maxlen=0)


def _results(
    make: Callable[[], Callable[[_Item], _Result]],
    items: Sequence[_Item],
    pool: WorkerPool,
    *,
    at_once: int,
    stop: Switch,
    may_lose: bool,
) -> Iterator[pa.Table]:
    """Tables with the packed results, one item each, as they are ready."""
    import ray.data

    rows = [{"item": _packed(item), "number": number} for number, item in enumerate(items)]
    actors = ray.data.ActorPoolStrategy(
        size=min(pool.workers, len(items)),
        max_tasks_in_flight_per_actor=2 * at_once,
        max_concurrent_calls_per_actor=at_once,
        enable_true_multi_threading=True,
    )
    with warnings.catch_warnings():
        # Ray Data has no other word for it yet, and would by default bring back for ever what a scan kills.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Holder,
            fn_kwargs={"make": Shared(make)},
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=pool.num_cpus,
            num_gpus=1.0 if pool.device == "cuda" else None,
            compute=actors,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )
    dataset.context.execution_no_progress_timeout_s = -1  # one scan may take longer than any limit
    dataset.context.max_errored_blocks = -1 if may_lose else 0
    dataset.context.custom_execution_callback_classes.append(ends_at(stop))
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _packed(value: object) -> bytes:
    from ray import cloudpickle

    return cloudpickle.dumps(value)


def _unpacked(packed: bytes) -> Any:
    from ray import cloudpickle

    return cloudpickle.loads(packed)


class _Holder:
    """What an actor is: the work, built once.

    The recipe for it comes with each item: an actor that is started again would not find it among its constructor's
    arguments.
    """

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None
        self._making = threading.Lock()
        count_restart()

    def __call__(self, block: pa.Table, make: Shared[Callable[[], Callable[[Any], Any]]]) -> pa.Table:
        """The results for a block of items; what the work raises is a result, too."""
        results = [_packed(self._result(_unpacked(item), make)) for item in block["item"].to_pylist()]
        return pa.table({"result": pa.array(results, pa.large_binary()), "number": block["number"]})

    def _result(self, item: Any, make: Shared[Callable[[], Callable[[Any], Any]]]) -> Any:
        try:
            with self._making:
                if self._work is None:
                    self._work = make.open()()
            return self._work(item)
        except Exception as error:
            if refusal_in(error) is None:
                log_fault(error)
            return _Raised(error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}"))


@dataclass(frozen=True)
class _Raised:
    """What the work raised."""

    error: Exception


def _travels(error: Exception) -> bool:
    """Whether it is still an exception on the other side; some libraries' cannot be packed, or unpacked."""
    try:
        return isinstance(_unpacked(_packed(error)), type(error))
    except Exception:
        return False

"""The same work on many items, in parallel: `pool_map` where a worker must first make what the work needs, such as a
network on a GPU, and `task_map` where any process can do it.

    with open_pool(workers, progress=progress) as pool:
        for result in pool_map(make_work, items, pool):

    with connect(), closing(task_map(work, items, TaskOptions())) as results:
        for item, result in results:

A pool is this process, or actors that Ray Data feeds: items go to whichever is free, so one slow scan holds up
nobody. For both: an item whose worker is lost is begun again after the others, and one that its workers die of
(`losses.MAX_DEATHS`) is set aside with what `lost` makes of it; nodes that are lost never count.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pyarrow as pa

from voxray.core.bulkhead import log_fault, refusal_in
from voxray.core.errors import ConfigError, ResourceError, VoxrayError
from voxray.core.progress import Progress
from voxray.distributed.cancellation import Switch, ends_at
from voxray.distributed.capacity import Capacity, cluster_capacity
from voxray.distributed.chatter import quiet_data
from voxray.distributed.cluster import connect
from voxray.distributed.errors import find_raised
from voxray.distributed.losses import Attempt, Deaths, Notes, deaths
from voxray.distributed.metrics import count_restart, count_retry
from voxray.distributed.placement import actor_cpus
from voxray.distributed.watchdog import has_living_actors, listener, wait_limit_s, watched
from voxray.inference.sliding import in_turn
from voxray.runtimes.device import choose_device

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Value = TypeVar("_Value")

TICK_S = 1.0
"""How often `task_map` calls its `tick`."""
MAX_BARREN = 2
"""Rounds of a pool in which no worker began anything before Ray's own error is raised."""


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
    lost: Callable[[_Item, str], _Result] | None = None,
) -> Iterator[_Result]:
    """Each item's result as it is ready; `make` builds the work once per worker.

    An item that its workers die of has the result that `lost` gives for it and the story of the deaths, and the
    others have theirs; without `lost` it ends everything with a ResourceError. Items lost with a node are begun
    again.

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

    num_cpus: float = 1.0
    at_once: int | None = None
    """Tasks that Ray holds at once; None: twice as many as find CPUs, so that none of these waits for work."""
    scheduling: str | NodeAffinitySchedulingStrategy = "DEFAULT"
    grace_s: float = 0.0
    """How long tasks that are cancelled may take to end before they are killed."""


def task_map(
    work: Callable[[_Item], _Result] | Shared[Callable[[_Item], _Result]],
    items: Sequence[_Item],
    options: TaskOptions | None = None,
    *,
    lost: Callable[[_Item, str], _Result] | None = None,
    tick: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> Generator[tuple[_Item, _Result]]:
    """Each item with its result, as it is ready, from tasks of the Ray that was joined or started.

    An item that its workers die of has the result that `lost` gives for it and the story of the deaths; without
    `lost` it ends everything with a ResourceError, as does what the work raises. Items lost with a node are begun
    again. However it ends, tasks under way are cancelled: close it. `tick` is called every second.

    What tasks wait for while none is answered is said to `progress`; where none has run for as long as `--wait-nodes`
    allows, for want of nodes, that is a ResourceError.
    """
    tasks = _Tasks(work, items, options or TaskOptions())
    waits = watched(
        listener(progress),
        lambda: len(tasks.waiting) + len(tasks.running),
        limit_s=wait_limit_s(),
        stop=tasks.stop.on,
        works=tasks.notes.any_begun,
    )
    with closing(tasks), waits:
        while (tasks.waiting or tasks.running) and not tasks.stop:
            answers = tasks.next_answers()
            tick()
            for number, answer in answers:
                item = items[number]
                if isinstance(answer, Deaths):
                    yield item, _lost(item, str(answer), lost)
                else:
                    yield item, answer


def _lost(item: _Item, story: str, lost: Callable[[_Item, str], _Result] | None) -> _Result:
    if lost is None:
        raise ResourceError(story)
    return lost(item, story)


class _Tasks(Generic[_Item, _Result]):
    """The tasks of a `task_map`: items by their numbers, those that wait and those that Ray has."""

    def __init__(
        self,
        work: Callable[[_Item], _Result] | Shared[Callable[[_Item], _Result]],
        items: Sequence[_Item],
        options: TaskOptions,
    ) -> None:
        import ray

        self._items, self._options = items, options
        self._work = work if isinstance(work, Shared) else Shared(work)
        # Ray's own retries count losses of nodes, and would try at once what others leave no memory for.
        self._task = ray.remote(num_cpus=options.num_cpus, max_retries=0, scheduling_strategy=options.scheduling)(_do)
        self._at_once = options.at_once or 2 * max(1, int(cluster_capacity().cpus / options.num_cpus))
        self._attempts: defaultdict[int, list[Attempt]] = defaultdict(list)
        self.notes, self.stop = Notes(), Switch()
        self.waiting = deque(range(len(items)))
        self.running: dict[ObjectRef[_Result], int] = {}

    def next_answers(self) -> Iterator[tuple[int, _Result | Deaths]]:
        """What has come within a second: results, and the deaths that set an item aside."""
        import ray

        while self.waiting and len(self.running) < self._at_once:
            number = self.waiting.popleft()
            self.running[self._task.remote(self._work, self._items[number], self.notes, number)] = number
        ready, _ = ray.wait(list(self.running), timeout=TICK_S)
        return self._answers(ready)

    def _answers(self, ready: Sequence[ObjectRef[_Result]]) -> Iterator[tuple[int, _Result | Deaths]]:
        import ray
        from ray.exceptions import RayError

        for reference in ready:
            number = self.running.pop(reference)
            try:
                answer: _Result | Deaths = ray.get(reference)
            except RayError as error:
                found = self._deaths(number, error)
                if not found.too_many:
                    self.waiting.append(number)
                    count_retry("task")
                    continue
                answer = found
            yield number, answer

    def _deaths(self, number: int, error: RayError) -> Deaths:
        """Those of the item until now; what is no loss is raised."""
        from ray.exceptions import NodeDiedError, RayTaskError, TaskCancelledError, TaskUnschedulableError

        if isinstance(error, RayTaskError | TaskCancelledError | TaskUnschedulableError):
            raise (find_raised(error, VoxrayError) or error) from None
        attempt = self.notes.take(number) or Attempt()
        if not isinstance(error, NodeDiedError):
            self._attempts[number].append(attempt)
        return deaths(self._attempts[number])

    def close(self) -> None:
        """Cancels what is under way."""
        _cancel(list(self.running), self._options.grace_s)
        self.notes.close()


def _do(work: Shared[Callable[[_Item], _Result]], item: _Item, notes: Notes, number: int) -> _Result:
    notes.begin(number)
    try:
        return work.open()(item)
    finally:
        notes.end(number)


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
    lost: Callable[[_Item, str], _Result] | None,
) -> Iterator[_Result]:
    """Rounds of Ray Data over what is missing: all items at first, and then those whose worker was lost.

    Ray's own retries would bind an item to the actor that it was given to, and wait for a node that never comes back.
    """
    stop, notes, missing = Switch(), Notes(), dict(enumerate(items))
    attempts: defaultdict[int, list[Attempt]] = defaultdict(list)
    barren, suspects = 0, set[int]()
    waits = watched(
        listener(pool.progress),
        lambda: len(missing),
        limit_s=wait_limit_s(),
        stop=stop.on,
        works=has_living_actors,
    )
    work = Shared(make)
    with quiet_data(), closing(notes), waits:
        while missing and not stop:
            before = len(missing)
            # What a worker died with is no more than suspect while others were under way in it.
            together = 1 if suspects else at_once
            once = _Round(work, pool, notes, together, strict=barren >= MAX_BARREN, stop=stop)
            with closing(once.results(missing)) as results:
                for number, result in results:
                    del missing[number]
                    yield result
            found = {number: attempt for number in missing if (attempt := notes.take(number))}
            barren = 0 if found or len(missing) < before else barren + 1
            for number, attempt in found.items():
                attempts[number].append(attempt)
            told = {number: deaths(attempts[number]) for number in missing if attempts[number]}
            for number in [number for number, one in told.items() if one.too_many]:
                story = f"{told[number]} Use fewer workers, or a machine with more memory."
                yield _lost(missing.pop(number), story, lost)
            suspects = {number for number, one in told.items() if one} & missing.keys()
            if missing and not stop:
                count = f"{len(missing)} {'is' if len(missing) == 1 else 'are'}"
                pool.progress.say(f"a worker or a node was lost: {count} begun again")


@dataclass(frozen=True)
class _Round:
    """One execution of Ray Data on actors, which leaves out the items whose worker was lost."""

    work: Shared[Callable[[], Callable[[Any], Any]]]
    pool: WorkerPool
    notes: Notes
    at_once: int
    strict: bool
    """Whether Ray's error for a lost worker is raised."""
    stop: Switch

    def results(self, items: Mapping[int, Any]) -> Generator[tuple[int, Any]]:
        """Each item's number with its result; what the work raises is raised."""
        tables = self._tables(items)
        try:
            for table in tables:
                for row in table.to_pylist():
                    result = _unpacked(row["result"])
                    if isinstance(result, _Raised):
                        raise result.error
                    yield row["number"], result
        except BaseException:
            self.stop.on()
            with suppress(Exception):
                deque(tables, maxlen=0)
            raise

    def _tables(self, items: Mapping[int, Any]) -> Iterator[pa.Table]:
        """Tables with the packed results, one item each, as they are ready."""
        import ray.data

        rows = [{"item": _packed(item), "number": number} for number, item in items.items()]
        actors = ray.data.ActorPoolStrategy(
            size=min(self.pool.workers, len(items)),
            max_tasks_in_flight_per_actor=2 * self.at_once,
            max_concurrent_calls_per_actor=self.at_once,
            enable_true_multi_threading=True,
        )
        with warnings.catch_warnings():
            # Ray Data has no other word for it yet.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Holder,
                fn_kwargs={"make": self.work, "notes": self.notes},
                batch_format="pyarrow",
                batch_size=None,
                num_cpus=self.pool.num_cpus,
                num_gpus=1.0 if self.pool.device == "cuda" else None,
                compute=actors,
                max_restarts=-1,
                max_task_retries=0,
            )
        dataset.context.execution_no_progress_timeout_s = -1  # one scan may take longer than any limit
        dataset.context.max_errored_blocks = 0 if self.strict else -1
        dataset.context.custom_execution_callback_classes.append(ends_at(self.stop))
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

    def __call__(self, block: pa.Table, make: Shared[Callable[[], Callable[[Any], Any]]], notes: Notes) -> pa.Table:
        """The results for a block of items; what the work raises is a result, too."""
        results = []
        for row in block.to_pylist():
            notes.begin(row["number"])
            results.append(self._result(row["item"], make))
            notes.end(row["number"])
        return pa.table({"result": pa.array(results, pa.large_binary()), "number": block["number"]})

    def _result(self, item: bytes, make: Shared[Callable[[], Callable[[Any], Any]]]) -> bytes:
        try:
            with self._making:
                if self._work is None:
                    self._work = make.open()()
            return _packed(self._work(_unpacked(item)))
        except Exception as error:
            if refusal_in(error) is None:
                log_fault(error)
            return _packed(_Raised(error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}")))


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

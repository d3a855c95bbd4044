"""Training patches as they stream from a store to a training worker, over Ray Data.

Each rank runs a dataset of its own whose rows are the *stretches* of the epoch plan: a task reads a stretch's tiles,
decodes them, cuts the patches and emits ready int16 batches. Ray's `streaming_split` would give every rank whatever
block is ready next, so who sees what would depend on timing; here the same (seed, epoch, slots) gives
the same batches, bit for bit, in the same order, and training that goes on at epoch 70 starts there without replaying
what came before. Nothing is kept between batches, so memory grows neither with the cases nor with the epochs.

Epochs follow each other without a gap: a dataset runs over many of them, and before it ends the next one is started.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, tee
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import torch

from voxray.core.batch import PatchBatch
from voxray.core.errors import DataError, ResourceError, VoxrayError
from voxray.core.recipe import NetworkConfig, Recipe
from voxray.core.storage import Place
from voxray.distributed.cancellation import Switch, ends_at
from voxray.distributed.cluster import configure_data
from voxray.distributed.errors import find_raised
from voxray.distributed.metrics import record
from voxray.sampling import Schedule
from voxray.store import PatchSource, Round, Store, StretchReads, manifest_digest, step_by_step, stretches
from voxray.store.shard_cache import tell_opened

READER_CPUS = 0.25
"""Logical CPUs that a reading task takes: readers must find room beside the training workers."""

MAX_READERS = 8
STALL_S = 120.0
"""How long a worker waits for a batch before it says so: the sign that its readers find no CPU."""

tell_opened(lambda source: record("voxray_shards_total", 1, source=source))

_DTYPES = {"voxels": np.int16, "stats": np.float32, "boxes": np.float32, "classes": np.int64, "labels": np.uint8}
_TORCH_DTYPES = {name: torch.from_numpy(np.zeros(0, dtype)).dtype for name, dtype in _DTYPES.items()}
_SEGMENT = 512
_LEAD = 16
_PREFETCH = 2


def patch_stream(  # noqa: PLR0913
    store: Store,
    recipe: Recipe,
    case_ids: Sequence[str],
    *,
    schedule: Schedule,
    epochs: range,
    slots: Sequence[int] = (0,),
    start_step: int = 0,
    local_world_size: int | None = None,
) -> Iterator[PatchBatch]:
    """The batches of some slots, step by step, of those epochs; of the first without its first `start_step` steps.

    Tasks read on this rank's own node as long as it has CPUs, shared among its `local_world_size` ranks (None: there
    are as many as slots, and all on it).

    Call it where Ray runs, such as in a training worker, and close it when done with it (a generator's `close`).
    """
    source = PatchSource.of(store, recipe, case_ids, schedule)
    source.plan(epochs.start)
    bare = recipe.model_copy(update={"network": NetworkConfig(kind=recipe.network.kind)})
    spec = _Spec(uuid4().hex, store.uri, store.digest, bare)
    todo, again = tee(stretches(recipe, schedule, epochs, slots=slots, start_step=start_step))
    flat = _follow(spec, map(source.reads, todo), _readers(local_world_size or schedule.num_slots))
    return flat if len(slots) == 1 else _step_by_step(flat, again, len(slots))


def _step_by_step(flat: Generator[PatchBatch], todo: Iterator[Round], num_slots: int) -> Iterator[PatchBatch]:
    with closing(flat):
        yield from step_by_step(flat, todo, num_slots)


def reader_cpus(world_size: int) -> float:
    """Logical CPUs that the streams of all ranks need at the least."""
    return READER_CPUS * world_size


@dataclass(frozen=True)
class _Spec:
    """What a task needs besides a stretch's reads, which name files: none opens a store, so none grows with one.

    The recipe's network is left out: to unpickle it, a reading task would import the networks, for seconds.
    """

    key: str
    uri: str
    digest: str
    recipe: Recipe


@dataclass(frozen=True)
class _Readers:
    """The reading tasks of one rank: how many at once, how much they may hold, and where they should run."""

    number: int
    object_store_bytes: float
    node_id: str | None
    """None where there is but one node."""


def _readers(local_world_size: int) -> _Readers:
    """What this node has for each of its ranks."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    own_id = ray.get_runtime_context().get_node_id()
    own = next((node["Resources"] for node in nodes if node["NodeID"] == own_id), ray.cluster_resources())
    return _Readers(
        number=int(min(MAX_READERS, max(1.0, own.get("CPU", 0.0) / local_world_size / 2))),
        object_store_bytes=own.get("object_store_memory", 0.0) / local_world_size / 2,
        node_id=own_id if len(nodes) > 1 else None,
    )


def _follow(spec: _Spec, todo: Iterator[StretchReads], readers: _Readers) -> Generator[PatchBatch]:
    """The batches of segment after segment, each segment's dataset started before the last one's end."""
    configure_data()
    segments = iter(lambda: list(islice(todo, _SEGMENT)), [])
    running = [_Segment(spec, some, readers) for some in islice(segments, 1)]
    try:
        while running:
            current = running[0]
            for left, batch in current.batches():
                if left <= _LEAD and len(running) == 1:
                    running += [_Segment(spec, some, readers) for some in islice(segments, 1)]
                yield batch
            running.remove(current)
    finally:
        for segment in running:
            segment.stop()


class _Segment:
    """A dataset over some stretches, drained by a thread of its own into a short queue."""

    def __init__(self, spec: _Spec, todo: list[StretchReads], readers: _Readers) -> None:
        self._num_batches = sum(one.last - one.first for one in todo)
        self._ready: queue.Queue[PatchBatch | BaseException] = queue.Queue(_PREFETCH)
        self._stopped = Switch()
        self._thread = threading.Thread(target=self._drain, args=(spec, todo, readers), daemon=True)
        self._thread.start()

    def batches(self) -> Iterator[tuple[int, PatchBatch]]:
        """(batches left after this one, batch)."""
        for left in reversed(range(self._num_batches)):
            found = self._next()
            if isinstance(found, BaseException):
                raise find_raised(found, VoxrayError) or found
            yield left, found

    def stop(self) -> None:
        """Ends the dataset, wherever it is, and waits for that: it must not outlive this process's Ray."""
        self._stopped.on()
        self._thread.join(timeout=30)

    def _next(self) -> PatchBatch | BaseException:
        begin = time.monotonic()
        while True:
            try:
                return self._ready.get(timeout=1.0)
            except queue.Empty:
                if time.monotonic() - begin > STALL_S:
                    return _stalled()

    def _drain(self, spec: _Spec, todo: list[StretchReads], readers: _Readers) -> None:
        try:
            for batch in _dataset_batches(spec, todo, readers, self._stopped):
                if not self._put(batch):
                    return
        except BaseException as error:
            self._put(error)

    def _put(self, item: PatchBatch | BaseException) -> bool:
        while not self._stopped:
            try:
                self._ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def _dataset_batches(spec: _Spec, todo: list[StretchReads], readers: _Readers, stop: Switch) -> Iterator[PatchBatch]:
    import ray.data

    rows = [one.to_row() for one in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _cut,
        fn_kwargs={"spec": spec},
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=READER_CPUS,
        compute=ray.data.TaskPoolStrategy(size=readers.number),
        **_scheduling(readers),
    )
    dataset.context.execution_no_progress_timeout_s = -1  # a worker that validates for minutes does not stall
    dataset.context.custom_execution_callback_classes.append(ends_at(stop))
    options = dataset.context.execution_options
    options.preserve_order = True
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=readers.object_store_bytes)
    options.resource_limits = limits
    for table in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
        yield from_table(table)


def _scheduling(readers: _Readers) -> dict[str, Any]:
    """Reads beside the worker that asks, and elsewhere where that node has no CPU left."""
    if readers.node_id is None:
        return {}
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    beside = NodeAffinitySchedulingStrategy(readers.node_id, soft=True, _spill_on_unavailable=True)
    return {"scheduling_strategy": beside}


def _cut(block: pa.Table, spec: _Spec) -> Iterator[pa.Table]:
    """What a reading task does: the batches of a block of stretches."""
    _require_unchanged(spec)
    for row in block.to_pylist():
        for batch in StretchReads.from_row(row).batches(Place.of(spec.uri), spec.recipe):
            yield to_table(batch)


_CHECKED: list[str] = []


def _require_unchanged(spec: _Spec) -> None:
    """A DataError where the store is another one by now: asked once in a process."""
    if spec.key in _CHECKED:
        return
    if manifest_digest(Place.of(spec.uri)) != spec.digest:
        raise DataError(
            "store.changed",
            f"{spec.uri} was changed while it was being read.",
            remedy="Let `voxray ingest` end, then start the training again: it goes on from its last checkpoint.",
        )
    _CHECKED[:] = [spec.key]


def to_table(batch: PatchBatch) -> pa.Table:
    """The batch as one row of raw bytes: cheaper than Arrow's tensor columns."""
    columns: dict[str, pa.Array] = {}
    for name, tensor in zip(PatchBatch._fields, batch, strict=True):
        array = None if tensor is None else np.ascontiguousarray(tensor.numpy())
        size = 0 if array is None else array.nbytes
        buffers = [None, pa.py_buffer(np.array([0, size], np.int64)), pa.py_buffer(b"" if array is None else array)]
        columns[name] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, buffers)
        columns[f"{name}_shape"] = pa.array([None if array is None else list(array.shape)], pa.list_(pa.int64()))
    return pa.table(columns)


def from_table(table: pa.Table) -> PatchBatch:
    """The inverse of `to_table`, in memory of its own, pinned where there is a GPU to copy it to."""
    pinned = torch.cuda.is_available()
    found: list[torch.Tensor | None] = []
    for name, dtype in _DTYPES.items():
        shape = table[f"{name}_shape"][0].as_py()
        if shape is None:
            found.append(None)
            continue
        data = np.frombuffer(table[name][0].as_buffer() or b"", dtype)
        made = torch.empty(shape, dtype=_TORCH_DTYPES[name], pin_memory=pinned)
        made.numpy()[...] = data.reshape(shape)
        found.append(made)
    return PatchBatch(*found)  # type: ignore[arg-type]


def _stalled() -> ResourceError:
    return ResourceError(
        f"no training patch has arrived for {STALL_S:g} s: the reading tasks find no CPU, or the store is very slow. "
        f"Leave {READER_CPUS:g} logical CPUs per worker free (fewer or smaller workers, or more logical CPUs with "
        f"`ray start --num-cpus`), and see that the store can be read."
    )

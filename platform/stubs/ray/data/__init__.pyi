from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from ray.data._internal.execution.execution_callback import ExecutionCallback

class ComputeStrategy: ...

class ActorPoolStrategy(ComputeStrategy):
    def __init__(
        self,
        *,
        size: int,
        max_tasks_in_flight_per_actor: int,
        max_concurrent_calls_per_actor: int,
        enable_true_multi_threading: bool,
    ) -> None: ...

class TaskPoolStrategy(ComputeStrategy):
    def __init__(self, size: int) -> None: ...

class ExecutionResources:
    @staticmethod
    def for_limits(*, object_store_memory: float) -> ExecutionResources: ...

class ExecutionOptions:
    preserve_order: bool
    resource_limits: ExecutionResources

class DataContext:
    use_datasource_v2: bool
    enable_progress_bars: bool
    enable_operator_progress_bars: bool
    print_on_execution_start: bool
    target_max_block_size: int
    execution_no_progress_timeout_s: float
    max_errored_blocks: int
    execution_options: ExecutionOptions
    custom_execution_callback_classes: list[type[ExecutionCallback]]
    @staticmethod
    def get_current() -> DataContext: ...

class Dataset:
    context: DataContext
    def map_batches(
        self,
        fn: Callable[..., pa.Table | Iterator[pa.Table]],
        *,
        fn_kwargs: Mapping[str, Any],
        batch_format: str,
        batch_size: int | None,
        compute: ComputeStrategy,
        num_cpus: float,
        num_gpus: float | None = None,
        **ray_remote_args: Any,
    ) -> Dataset: ...
    def iter_batches(
        self, *, batch_size: int | None, batch_format: str, prefetch_batches: int
    ) -> Iterator[pa.Table]: ...

def from_items(items: Sequence[object], *, override_num_blocks: int) -> Dataset: ...

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.fs
from ray.train.callbacks import UserCallback as UserCallback

class TrainContext:
    def get_world_rank(self) -> int: ...
    def get_world_size(self) -> int: ...
    def get_local_world_size(self) -> int: ...

class ScalingConfig:
    def __init__(
        self, *, num_workers: int | tuple[int, int], use_gpu: bool, resources_per_worker: Mapping[str, float]
    ) -> None: ...

class FailureConfig:
    def __init__(self, *, max_failures: int, controller_failure_limit: int = -1) -> None: ...

class LoggingConfig:
    def __init__(self, *, log_level: str) -> None: ...

class RunConfig:
    def __init__(
        self,
        *,
        name: str,
        worker_runtime_env: Mapping[str, Any],
        storage_path: str,
        storage_filesystem: pyarrow.fs.FileSystem,
        failure_config: FailureConfig,
        callbacks: Sequence[UserCallback],
        logging_config: LoggingConfig,
    ) -> None: ...

class ControllerError(Exception):
    controller_failure: Exception

class WorkerGroupError(Exception):
    worker_failures: Mapping[int, Exception]

def get_context() -> TrainContext: ...
def report(metrics: Mapping[str, float]) -> None: ...

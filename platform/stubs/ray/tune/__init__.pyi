from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.fs
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

class Trainable:
    def setup(self, config: dict[str, Any]) -> None: ...
    def step(self) -> dict[str, Any]: ...
    def save_checkpoint(self, checkpoint_dir: str) -> None: ...
    def load_checkpoint(self, checkpoint: object) -> None: ...
    def reset_config(self, new_config: dict[str, Any]) -> bool: ...

class Trial:
    trial_id: str

class Callback:
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None: ...
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None: ...

class TuneContext:
    def get_trial_id(self) -> str: ...

class TuneConfig:
    def __init__(
        self,
        *,
        search_alg: Searcher,
        num_samples: int,
        metric: str | None = None,
        mode: str | None = None,
        scheduler: TrialScheduler | None = None,
        max_concurrent_trials: int | None = None,
        reuse_actors: bool = False,
    ) -> None: ...

class FailureConfig:
    def __init__(self, *, max_failures: int) -> None: ...

class RunConfig:
    def __init__(
        self,
        *,
        failure_config: FailureConfig,
        storage_path: str,
        storage_filesystem: pyarrow.fs.FileSystem,
        verbose: int,
        name: str | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> None: ...

class ResultGrid:
    num_errors: int
    errors: Sequence[Exception]
    def __len__(self) -> int: ...

_Function = Callable[[dict[str, Any]], None]

class Tuner:
    def __init__(
        self, trainable: type[Trainable] | _Function, *, tune_config: TuneConfig, run_config: RunConfig
    ) -> None: ...
    @staticmethod
    def can_restore(path: str, storage_filesystem: pyarrow.fs.FileSystem) -> bool: ...
    @staticmethod
    def restore(
        path: str,
        storage_filesystem: pyarrow.fs.FileSystem,
        *,
        trainable: _Function,
        resume_unfinished: bool,
        resume_errored: bool,
    ) -> Tuner: ...
    def fit(self) -> ResultGrid: ...

def get_context() -> TuneContext: ...
def with_parameters(trainable: Callable[..., None], **parameters: object) -> _Function: ...
def with_resources(trainable: _Function, resources: Mapping[str, float]) -> _Function: ...

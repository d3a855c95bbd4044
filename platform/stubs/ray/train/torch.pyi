from collections.abc import Callable, Mapping
from typing import Any

import torch
from ray.train import RunConfig, ScalingConfig

class TorchConfig:
    def __init__(self, *, backend: str, timeout_s: int) -> None: ...

class TorchTrainer:
    def __init__(
        self,
        train_loop_per_worker: Callable[[dict[str, Any]], None],
        *,
        train_loop_config: Mapping[str, Any],
        torch_config: TorchConfig,
        scaling_config: ScalingConfig,
        run_config: RunConfig,
    ) -> None: ...
    def fit(self) -> object: ...

def get_device() -> torch.device: ...

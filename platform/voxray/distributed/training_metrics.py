"""A training's numbers for Prometheus: speed, waiting, memory and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from voxray.distributed.metrics import count_retry, record
from voxray.training.checkpoint import Checkpoint
from voxray.training.meter import Tick

if TYPE_CHECKING:
    from ray.train.callbacks import UserCallback


def recorded_ticks(run: str, rank: int, then: Callable[[Tick], None]) -> Callable[[Tick], None]:
    """A `Surroundings.tick` that records what a few steps amounted to before it passes it on.

    Speeds are rank 0's to tell, as they count all workers; memory is each worker's own.
    """

    def tick(news: Tick) -> None:
        if rank == 0:
            record("voxray_training_samples_per_s", news.samples_per_s, run=run)
            record("voxray_training_wait_share", news.wait_share, run=run)
            record("voxray_training_step_seconds", news.step_s, run=run)
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_reserved()
            record("voxray_training_gpu_memory_bytes", memory, run=run, rank=str(rank))
        then(news)

    return tick


def record_checkpoint(run: str, *, seconds: float, num_bytes: int) -> None:
    """A checkpoint has been written: how long that took, and its size."""
    record("voxray_checkpoint_seconds", seconds, run=run)
    record("voxray_checkpoint_bytes", num_bytes, run=run)


def checkpoint_written(run: str, seconds: float, checkpoint: Checkpoint) -> None:
    """Records a checkpoint that rank 0 has written beside the training."""
    num_bytes = tensor_bytes(checkpoint.weights) + tensor_bytes(checkpoint.trainer)
    record_checkpoint(run, seconds=seconds, num_bytes=num_bytes)


def tensor_bytes(value: object) -> int:
    """Bytes of all tensors within nested mappings and sequences."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(tensor_bytes(part) for part in value.values())
    return sum(tensor_bytes(part) for part in value) if isinstance(value, list | tuple) else 0


def loss_counter() -> UserCallback:
    """A callback of Ray Train that counts the workers that were lost or failed, and are started again."""
    from ray.train import UserCallback

    class _Counts(UserCallback):
        def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None:
            del run_context
            for _ in worker_exceptions:
                count_retry("worker")

    return _Counts()

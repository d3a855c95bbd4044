"""The training loop: epochs of steps, validation, records, checkpoints. It knows no cluster and no file.

Everything random derives from (seed, epoch, step, rank), so training that was stopped and went on from a checkpoint
gives the weights that an uninterrupted one would have given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from voxray.core.batch import PatchBatch
from voxray.core.recipe import Recipe
from voxray.tasks import Task
from voxray.training.collective import Collective
from voxray.training.optim import rate_at, set_rate
from voxray.training.state import TrainingState
from voxray.training.step import Stepper

READ_EVERY = 10
"""Steps between looks at the loss: each makes the device wait."""


@dataclass(frozen=True)
class Tick:
    """What a few steps amounted to; `loss` is their mean, nan where all were skipped."""

    epoch: int
    steps_done: int
    """Of the whole training."""
    loss: float
    samples_per_s: float
    wait_share: float = 0.0
    """Of these steps' time on this rank, spent waiting for patches."""
    step_s: float = 0.0


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch amounted to; `epoch` counts from 1, `metrics` is empty where it was not validated."""

    epoch: int
    rate: float
    losses: Mapping[str, float]
    metrics: Mapping[str, float]
    samples_per_s: float
    """Over all ranks, validation apart."""
    wait_share: float
    """The share of its steps' time that was spent waiting for patches."""
    step_s: float
    num_skipped: int
    """Steps of this epoch whose gradient was not finite."""
    validated: bool = False
    """The same on every rank, while only rank 0 knows the metrics."""

    def row(self) -> dict[str, float]:
        """The record as one flat row of numbers."""
        numbers = {"epoch": float(self.epoch), "rate": self.rate, "samples_per_s": self.samples_per_s}
        numbers |= {"wait_share": self.wait_share, "step_s": self.step_s, "num_skipped": float(self.num_skipped)}
        numbers |= {f"loss/{name}": value for name, value in self.losses.items()}
        return numbers | {f"val/{name}": value for name, value in self.metrics.items()}


@dataclass(frozen=True)
class Surroundings:
    """What the loop asks for. Every rank calls every function; `save` and `tick` are for rank 0 to act on."""

    batches: Callable[[int], Iterable[PatchBatch]]
    """This rank's patches of an epoch (from 0), `num_steps` batches of them."""
    num_steps: int
    validate: Callable[[nn.Module], Mapping[str, float]] | None
    """Metrics of the network in eval mode; what ranks other than 0 return is not read."""
    save: Callable[[TrainingState, EpochRecord], None]
    tick: Callable[[Tick], None] = lambda _: None


def fit(
    training: TrainingState,
    *,
    task: Task[Any, Any, Any],
    recipe: Recipe,
    around: Surroundings,
    collective: Collective | None = None,
    seed: int = 0,
) -> None:
    """Trains from `training.epochs_done` to the recipe's number of epochs; the result is in `training`."""
    collective = collective or Collective()
    stepper = Stepper(training, task=task, recipe=recipe, collective=collective, seed=seed)
    training.model.train()
    for epoch in range(training.epochs_done, recipe.optim.epochs):
        record = _epoch(stepper, training, epoch, around=around, collective=collective)
        if around.validate and _is_due(epoch, recipe):
            with training.predicting() as model:
                collective.share_buffers(model)
                record = _with_metrics(record, around.validate(model))
        training.epochs_done = epoch + 1
        training.history.append(record.row())
        around.save(training, record)


def _epoch(
    stepper: Stepper, training: TrainingState, epoch: int, *, around: Surroundings, collective: Collective
) -> EpochRecord:
    meter = _Meter(training, around.tick, collective.world_size, epoch)
    skipped_before = training.num_skipped
    stream = iter(around.batches(epoch))
    rate = 0.0
    for step in range(around.num_steps):
        begin = time.perf_counter()
        patches = next(stream, None)
        assert patches is not None, f"the stream of epoch {epoch} ended after {step} of {around.num_steps} batches"
        waited_s = time.perf_counter() - begin
        rate = rate_at(training.config, epoch, step, around.num_steps)
        set_rate(training.optimizer, rate)
        parts = stepper.step(patches, (epoch, step))
        meter.add(parts, len(patches.voxels), waited_s, time.perf_counter() - begin)
    meter.flush()
    waited_s, total_s = collective.mean([meter.waited_s, meter.total_s])
    return EpochRecord(
        epoch=epoch + 1,
        rate=rate,
        losses=meter.losses(),
        metrics={},
        samples_per_s=meter.num_samples * collective.world_size / max(total_s, 1e-9),
        wait_share=waited_s / max(total_s, 1e-9),
        step_s=total_s / max(around.num_steps, 1),
        num_skipped=training.num_skipped - skipped_before,
    )


def _is_due(epoch: int, recipe: Recipe) -> bool:
    return (epoch + 1) % recipe.optim.validate_every == 0 or epoch + 1 == recipe.optim.epochs


def _with_metrics(record: EpochRecord, metrics: Mapping[str, float]) -> EpochRecord:
    return replace(record, metrics=dict(metrics), validated=True)


class _Meter:
    """Adds up an epoch; losses stay on the device and are read every `READ_EVERY` steps."""

    def __init__(self, training: TrainingState, tick: Callable[[Tick], None], world_size: int, epoch: int) -> None:
        self._training, self._tick, self._world_size, self._epoch = training, tick, world_size, epoch
        self._sums: dict[str, Tensor] = {}
        self._num_applied = self._num_recent = self._recent_samples = 0
        self._recent, self._recent_s = torch.zeros((), device=training.device), 0.0
        self._since_tick, self._recent_waited_s = 0, 0.0
        self.num_samples, self.waited_s, self.total_s = 0, 0.0, 0.0

    def add(self, parts: dict[str, Tensor] | None, num_samples: int, waited_s: float, step_s: float) -> None:
        self.num_samples += num_samples
        self._recent_samples += num_samples
        self.waited_s += waited_s
        self.total_s += step_s
        self._recent_s += step_s
        self._recent_waited_s += waited_s
        self._since_tick += 1
        if parts is not None:
            self._num_applied += 1
            self._num_recent += 1
            for name, value in parts.items():
                self._sums[name] = self._sums.get(name, 0) + value
            self._recent = self._recent + torch.stack(list(parts.values())).sum()
        if self._since_tick >= READ_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._since_tick == 0:
            return
        loss = float(self._recent) / self._num_recent if self._num_recent else float("nan")
        speed = self._recent_samples * self._world_size / max(self._recent_s, 1e-9)
        wait_share, step_s = self._recent_waited_s / max(self._recent_s, 1e-9), self._recent_s / self._since_tick
        self._tick(Tick(self._epoch + 1, self._training.num_steps, loss, speed, wait_share, step_s))
        self._since_tick = self._num_recent = self._recent_samples = 0
        self._recent, self._recent_s, self._recent_waited_s = torch.zeros_like(self._recent), 0.0, 0.0

    def losses(self) -> dict[str, float]:
        means = {name: float(total) / self._num_applied for name, total in self._sums.items()}
        return {"total": sum(means.values()) if means else float("nan")} | means

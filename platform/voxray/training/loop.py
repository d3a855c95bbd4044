"""The training loop: epochs of steps, validation, records, checkpoints. It knows no cluster and no file.

Everything random derives from (seed, epoch, step, slot), so training that was stopped and went on from a checkpoint
gives the weights that an uninterrupted one would have given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import nn

from voxray.core.batch import PatchBatch
from voxray.core.recipe import Recipe
from voxray.tasks import Task
from voxray.training.collective import Collective
from voxray.training.meter import READ_EVERY, Tick
from voxray.training.optim import rate_at, set_rate
from voxray.training.state import TrainingState
from voxray.training.step import Stepper


class StoppedError(Exception):
    """Training was asked to stop, and what it had come to is saved; the text says where that was."""


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
    checkpoint_s: float = 0.0
    """Seconds that training waited for checkpoints since the record before, and how many these were."""
    num_checkpoints: int = 0
    checkpoint_share: float = 0.0
    """Of the time of steps and checkpoints together."""

    def row(self) -> dict[str, float]:
        """The record as one flat row of numbers."""
        numbers = {"epoch": float(self.epoch), "rate": self.rate, "samples_per_s": self.samples_per_s}
        numbers |= {"wait_share": self.wait_share, "step_s": self.step_s, "num_skipped": float(self.num_skipped)}
        numbers |= {"checkpoint_s": self.checkpoint_s, "num_checkpoints": float(self.num_checkpoints)}
        numbers["checkpoint_share"] = self.checkpoint_share
        numbers |= {f"loss/{name}": value for name, value in self.losses.items()}
        return numbers | {f"val/{name}": value for name, value in self.metrics.items()}


@dataclass(frozen=True)
class Surroundings:
    """What the loop asks for. Every rank calls every function; `save` and `tick` are for rank 0 to act on."""

    batches: Callable[[int], Iterable[PatchBatch]]
    """This rank's patches of an epoch (from 0): for each step that is left a batch for each slot of the rank."""
    num_steps: int
    validate: Callable[[nn.Module], Mapping[str, float]] | None
    """Metrics of the network in eval mode; what ranks other than 0 return is not read."""
    save: Callable[[TrainingState, EpochRecord], None]
    tick: Callable[[Tick], None] = lambda _: None
    after_step: Callable[[TrainingState], None] = lambda _: None
    """Called between two steps; it may save, and ends the training by raising `StoppedError`."""
    interrupted: Callable[[TrainingState], None] = lambda _: None
    """Called where `validate` has raised `StoppedError`: the epoch's steps are done, and it has no record yet."""


def fit(
    training: TrainingState,
    *,
    task: Task[Any, Any, Any],
    recipe: Recipe,
    around: Surroundings,
    collective: Collective | None = None,
    seed: int = 0,
) -> None:
    """Trains from where `training` is to the recipe's number of epochs; the result is in `training`."""
    collective = collective or Collective()
    stepper = Stepper(training, task=task, recipe=recipe, collective=collective, seed=seed)
    training.model.train()
    for epoch in range(training.epochs_done, recipe.optim.epochs):
        record = _epoch(stepper, training, epoch, around=around, collective=collective)
        if around.validate and _is_due(epoch, recipe):
            record = _validated(training, record, around.validate, around, collective)
        training.end_epoch(record.row())
        around.save(training, record)


def _epoch(
    stepper: Stepper, training: TrainingState, epoch: int, *, around: Surroundings, collective: Collective
) -> EpochRecord:
    meter, stream = training.meter, iter(around.batches(epoch))
    rate = rate_at(training.config, epoch, max(around.num_steps - 1, 0), around.num_steps)

    for step in range(training.steps_done, around.num_steps):
        begin = time.perf_counter()
        batches = list(islice(stream, len(collective.slots)))
        assert len(batches) == len(collective.slots), (
            f"the stream of epoch {epoch} ended after {step} of {around.num_steps} batches"
        )
        waited_s = time.perf_counter() - begin
        rate = rate_at(training.config, epoch, step, around.num_steps)
        set_rate(training.optimizer, rate)
        parts = stepper.step(batches, (epoch, step))
        training.steps_done = step + 1
        samples = sum(len(patches.voxels) for patches in batches) * collective.global_share
        meter.add(parts, samples, waited_s=waited_s, step_s=time.perf_counter() - begin)
        meter.flush(around.tick, epoch=epoch + 1, steps_done=training.num_steps, at_least=READ_EVERY)
        around.after_step(training)
    meter.flush(around.tick, epoch=epoch + 1, steps_done=training.num_steps)
    waited_s, total_s = collective.mean([meter.waited_s, meter.total_s])
    return EpochRecord(
        epoch=epoch + 1,
        rate=rate,
        losses=meter.losses(),
        metrics={},
        samples_per_s=meter.num_samples / max(total_s, 1e-9),
        wait_share=waited_s / max(total_s, 1e-9),
        step_s=total_s / max(around.num_steps, 1),
        num_skipped=meter.num_skipped,
        checkpoint_s=training.checkpoint_s,
        num_checkpoints=training.num_checkpoints,
        checkpoint_share=training.checkpoint_s / max(training.checkpoint_s + total_s, 1e-9),
    )


def _validated(
    training: TrainingState,
    record: EpochRecord,
    validate: Callable[[nn.Module], Mapping[str, float]],
    around: Surroundings,
    collective: Collective,
) -> EpochRecord:
    try:
        with training.predicting() as model:
            collective.share_buffers(model)
            return replace(record, metrics=dict(validate(model)), validated=True)
    except StoppedError:
        around.interrupted(training)
        raise


def _is_due(epoch: int, recipe: Recipe) -> bool:
    return (epoch + 1) % recipe.optim.validate_every == 0 or epoch + 1 == recipe.optim.epochs

"""One step: patches to the device, normalised and augmented there, forward, loss, backward, update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxray import augment
from voxray.core.batch import Batch, PatchBatch
from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe, ZScoreIntensity
from voxray.losses import Reduce
from voxray.preprocess import normalise
from voxray.tasks import Task
from voxray.training.collective import Collective
from voxray.training.optim import clip_gradient
from voxray.training.state import TrainingState

MAX_SKIPPED_IN_A_ROW = 50
"""Steps without a finite gradient after which training gives up; fp16 needs about 20 to find its scale."""

_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}


class Stepper:
    """Takes steps with one network; every rank of the group takes them together."""

    def __init__(
        self, training: TrainingState, *, task: Task[Any, Any, Any], recipe: Recipe, collective: Collective, seed: int
    ) -> None:
        self._training, self._task, self._recipe, self._collective = training, task, recipe, collective
        self._seed, self._skipped_in_a_row = seed, 0
        self._network = collective.wrap(training.model)
        self._buffers = [buffer for buffer in training.model.buffers() if buffer.numel()]

    def step(self, batches: Sequence[PatchBatch], place: tuple[int, int]) -> dict[str, Tensor] | None:
        """The parts of the loss, on the device; None where the step was skipped, on every rank alike.

        There is a batch for each slot of this rank. `place` is (epoch, step), from 0: with seed and slot it fixes
        every random number of the step.
        """
        training, config = self._training, self._recipe.optim
        training.optimizer.zero_grad()
        with _undone_unless(self._buffers) as keep:
            if self._collective.accumulates:
                parts = self._accumulated(batches, place)
            else:
                (patches,) = batches
                parts = self._losses(self._prepared(patches, place, self._collective.rank), self._collective.reduce)
                self._backward(torch.stack(list(parts.values())).sum(), self._collective.world_size)
            training.scaler.unscale_(training.optimizer)
            norm = clip_gradient(training.model.parameters(), config.clip_norm)
            applied = bool(torch.isfinite(norm))
            if applied:
                keep()
        self._update(applied)
        return {name: value.detach() for name, value in parts.items()} if applied else None

    def _prepared(self, patches: PatchBatch, place: tuple[int, int], slot: int) -> Batch:
        """What the network sees in a slot; torch's own random numbers go on from there."""
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, *place, slot]))
        torch.manual_seed(int(rng.integers(2**62)))
        return prepare(patches.to(self._training.device), self._recipe, rng)

    def _losses(self, batch: Batch, reduce: Reduce) -> dict[str, Tensor]:
        """The network's forward pass and the parts of its loss."""
        config = self._recipe.optim
        with torch.autocast(self._training.device.type, dtype=_PRECISION[config.amp], enabled=config.amp != "off"):
            output = self._network(_in_memory_format(batch.images, config.channels_last))
            return self._task.loss(output, batch, reduce)

    def _accumulated(self, batches: Sequence[PatchBatch], place: tuple[int, int]) -> dict[str, Tensor]:
        """The global loss, with its gradient from all slots of all ranks.

        A loss divides by sums over all slots, so each slot goes through the network twice: first for its summands,
        which are added up, then for the gradient of the loss by its own summands. Norms' running statistics are those
        of slot 0, as they are where every slot has a worker.
        """
        slots = []
        for slot, patches in zip(self._collective.slots, batches, strict=True):
            batch = self._prepared(patches, place, slot)
            slots.append((batch, _random_state(self._training.device)))
        totals: list[Tensor] = []
        for batch, state in slots:
            summands: list[Tensor] = []
            _set_random_state(state, self._training.device)
            with torch.no_grad(), _undone_unless(self._buffers):
                self._losses(batch, partial(_collect, summands))
            totals = [one + other for one, other in zip(totals, summands, strict=True)] if totals else summands
        totals = self._collective.add_up(totals)
        parts: dict[str, Tensor] = {}
        for number, (batch, state) in enumerate(slots):
            _set_random_state(state, self._training.device)
            with _undone_unless(self._buffers) as keep:
                parts = self._losses(batch, partial(_total, iter(totals)))
                self._backward(
                    torch.stack(list(parts.values())).sum(), 1
                )  # before buffers that it knows are put back
                if number == 0:
                    keep()
        self._add_up_gradients()
        return parts

    def _add_up_gradients(self) -> None:
        learned = [parameter for parameter in self._training.model.parameters() if parameter.requires_grad]
        if self._collective.world_size == 1:
            return
        mine = [torch.zeros_like(one) if one.grad is None else one.grad for one in learned]
        for parameter, total in zip(learned, self._collective.add_up(mine), strict=True):
            parameter.grad = total

    def _backward(self, loss: Tensor, factor: int) -> None:
        """The gradient of the loss times a factor; a loss that is not finite on any rank spoils it on all."""
        spoilt = loss.detach() * 0
        scaled = self._training.scaler.scale(loss)
        torch.autograd.backward(scaled, grad_tensors=factor + spoilt)

    def _update(self, applied: bool) -> None:
        training = self._training
        training.num_steps += 1
        if applied:
            training.scaler.step(training.optimizer)
            if training.average:
                training.average.update(training.model)
        else:
            training.num_skipped += 1
        if training.scaler.is_enabled():
            training.scaler.update()
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise ConfigError(
                f"training diverged: {MAX_SKIPPED_IN_A_ROW} steps in a row had no finite gradient; "
                f"use a lower optim.rate, a longer optim.warmup_epochs, or optim.amp = 'bf16' or 'off'."
            )


def _collect(summands: list[Tensor], value: Tensor) -> Tensor:
    """A `Reduce` that only notes what is to be summed."""
    summands.append(value.detach())
    return value


def _total(totals: Iterator[Tensor], value: Tensor) -> Tensor:
    """A `Reduce` that takes the next of the known sums, with the gradient of this summand."""
    return next(totals) + (value - value.detach())


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def prepare(patches: PatchBatch, recipe: Recipe, rng: np.random.Generator) -> Batch:
    """Patches in HU -> what the network sees: normalised, smoothed where the recipe says so, augmented."""
    images = normalise(patches.voxels, patches.stats, recipe.intensity)[:, None]
    if isinstance(recipe.intensity, ZScoreIntensity) and recipe.intensity.train_smooth_sigma_vox > 0:
        images = augment.smooth(images, np.full((len(images), 3), recipe.intensity.train_smooth_sigma_vox))
    batch = Batch(images, patches.boxes, patches.classes, patches.labels)
    draws = augment.draw(rng, recipe.augment, len(images))
    return augment.apply(batch, draws, spacing_mm=recipe.grid.spacing_mm)


@contextmanager
def _undone_unless(buffers: list[Tensor]) -> Iterator[Any]:
    """Puts buffers back unless the given function was called: a broken batch must not reach running statistics."""
    before = [buffer.clone() for buffer in buffers]
    kept = False

    def keep() -> None:
        nonlocal kept
        kept = True

    yield keep
    if not kept:
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)


def _in_memory_format(images: Tensor, channels_last: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last_3d) if channels_last else images

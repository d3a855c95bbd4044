"""One step: patches to the device, normalised and augmented there, forward, loss, backward, update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxray import augment
from voxray.core.batch import Batch, PatchBatch
from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe, ZScoreIntensity
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

    def step(self, patches: PatchBatch, place: tuple[int, int]) -> dict[str, Tensor] | None:
        """The parts of the loss, on the device; None where the step was skipped, on every rank alike.

        `place` is (epoch, step), from 0: with seed and rank it fixes every random number of the step.
        """
        training, config = self._training, self._recipe.optim
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, *place, self._collective.rank]))
        torch.manual_seed(int(rng.integers(2**62)))
        batch = prepare(patches.to(training.device), self._recipe, rng)
        training.optimizer.zero_grad()
        with _undone_unless(self._buffers) as keep:
            with torch.autocast(training.device.type, _PRECISION[config.amp], enabled=config.amp != "off"):
                output = self._network(_in_memory_format(batch.images, config.channels_last))
            parts = self._task.loss(output, batch, self._collective.reduce)
            self._backward(torch.stack(list(parts.values())).sum())
            training.scaler.unscale_(training.optimizer)
            norm = clip_gradient(training.model.parameters(), config.clip_norm)
            applied = bool(torch.isfinite(norm))
            if applied:
                keep()
        self._update(applied)
        return {name: value.detach() for name, value in parts.items()} if applied else None

    def _backward(self, loss: Tensor) -> None:
        """The gradient of the loss, summed over ranks; a loss that is not finite on any rank spoils it on all."""
        spoilt = loss.detach() * 0
        scaled = self._training.scaler.scale(loss)
        torch.autograd.backward(scaled, grad_tensors=self._collective.world_size + spoilt)

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

"""A network of many classes after few channels, and what a predictor answers with it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from support.small_networks import small_recipe
from voxray.core.recipe import SegmentationMerge
from voxray.core.run import Run
from voxray.core.volume import Grid, Volume
from voxray.inference.predictor import Predictor
from voxray.runtimes import TrainedNetwork, network_of
from voxray.tasks.recorder import Recorder

MANY = 20
"""Foreground classes, after a layer of 8 channels."""


@functools.cache
def many_classes() -> TrainedNetwork:
    """A small SegResNet for runtimes."""
    torch.manual_seed(0)
    made: nn.Module = small_recipe("segresnet").network.build(small_recipe("segresnet"), MANY)
    return network_of(small_recipe("segresnet"), made.eval())


@functools.cache
def many_classes_onnx() -> bytes:
    """Its ONNX, exported once in a test run."""
    return many_classes().onnx()


def some_patches() -> torch.Tensor:
    """Two patches of noise."""
    return torch.randn((2, 1, 16, 24, 16), generator=torch.Generator().manual_seed(1))


def noisy_scan(shape: tuple[int, int, int] = (40, 36, 50)) -> Volume:
    """Noise on the recipe's grid."""
    rng = np.random.default_rng(3)
    voxels = rng.normal(0, 300, shape).astype(np.int16)
    return Volume(voxels, Grid(shape, (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1)))


class Whole:
    """A network that says what another one says, and nothing of its parts."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, images: torch.Tensor) -> Any:
        return self._network(images)


def answered(
    network: Any,
    *,
    device: str = "cpu",
    recorder: Recorder | None = None,
    how: SegmentationMerge | None = None,
    **inference: Any,
) -> Any:
    """The labels of a scan on the recipe's grid."""
    recipe = small_recipe("segresnet")
    changed = {"blend": "gaussian", "overlap": 0.5, **inference}
    recipe = recipe.model_copy(update={"inference": recipe.inference.model_copy(update=changed)})
    classes = tuple(f"class_{index}" for index in range(MANY))
    run = Run(name="many", dataset="none", licence="none", classes=classes, recipe={}, voxray_version="0")
    found = Predictor(run, recipe, network, device, how=how).predict_grid(noisy_scan(), recorder=recorder)
    assert isinstance(found, Volume)
    return found.voxels

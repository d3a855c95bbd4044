"""A recipe small enough to train in a test, and patches to train it on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from voxray.core.batch import PatchBatch
from voxray.core.recipe import Recipe, parse_recipe
from voxray.models import MODELS

TINY: dict[str, Any] = {
    "name": "tiny",
    "grid": {"spacing_mm": [1.0, 1.0, 1.0]},
    "intensity": {"kind": "window", "low_hu": -1000.0, "high_hu": 1000.0},
    "patch": {"size_vox": [16, 16, 16], "margin_vox": [0, 0, 0]},
    "network": {"kind": "unet", "channels": [4, 8], "strides": [2], "num_res_units": 1},
    "loss": {"kind": "segmentation"},
    "optim": {"optimizer": "adamw", "rate": 0.01, "epochs": 4, "batch_size": 2, "amp": "off", "validate_every": 1},
    "inference": {"window_vox": [16, 16, 16]},
    "merge": {"kind": "segmentation"},
}


def tiny_recipe(*overrides: str) -> Recipe:
    """The tiny recipe with ``field.subfield=value`` overrides."""
    return parse_recipe(TINY, MODELS, overrides=overrides, where="tiny")


def ball_patches(seed: int, *, size: int = 2, side: int = 16) -> PatchBatch:
    """Noisy patches with a bright ball each."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(5, side - 5, (size, 3, 1, 1, 1))
    axes = np.stack(np.meshgrid(*[np.arange(side) + 0.5] * 3, indexing="ij"))
    inside = np.sqrt(((axes[None] - centre) ** 2).sum(axis=1)) < 4
    voxels = np.where(inside, 500, -500) + rng.normal(0, 50, inside.shape)
    return PatchBatch(
        voxels=torch.as_tensor(voxels.astype(np.int16)),
        stats=torch.tensor([[-400.0, 300.0, -700.0, 700.0]]).expand(size, 4).contiguous(),
        boxes=torch.zeros(size, 0, 6),
        classes=torch.zeros(size, 0, dtype=torch.int64),
        labels=torch.as_tensor(inside.astype(np.uint8)),
    )

"""A recipe small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from voxray.config import to_json
from voxray.models import MODELS
from voxray.recipe import Recipe, parse_recipe
from voxray.run import Run

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

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_recipe() -> MakeRecipe:
    """The tiny recipe with ``field.subfield=value`` overrides."""
    return lambda *overrides: parse_recipe(TINY, MODELS, overrides=overrides, where="tiny")


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """A run of a recipe on an imagined dataset."""
    import json

    def make(recipe: Recipe, **changes: Any) -> Run:
        fields = {"name": "test", "dataset": "toy", "licence": "CC0", "classes": ["blob"], "fold": 0}
        fields |= {"recipe": json.loads(to_json(recipe)), "voxray_version": "0.1.0"}
        return Run.model_validate(fields | changes)

    return make

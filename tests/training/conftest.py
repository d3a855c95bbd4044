"""Fixtures around the tiny recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from support.tiny_task import ball_patches, tiny_recipe
from voxray.core.batch import PatchBatch
from voxray.core.config import to_json
from voxray.core.recipe import Recipe
from voxray.core.run import Run


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """The tiny recipe with ``field.subfield=value`` overrides."""
    return tiny_recipe


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """A run of a recipe on an imagined dataset."""

    def make(recipe: Recipe, **changes: Any) -> Run:
        fields = {"name": "test", "dataset": "toy", "licence": "CC0", "classes": ["blob"], "fold": 0}
        fields |= {"recipe": json.loads(to_json(recipe)), "voxray_version": "0.1.0"}
        return Run.model_validate(fields | changes)

    return make


@pytest.fixture
def make_patches() -> Callable[..., PatchBatch]:
    """Patches of 16 voxels a side with a bright ball each, labelled; the same seed gives the same ones."""
    return ball_patches


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower with more threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

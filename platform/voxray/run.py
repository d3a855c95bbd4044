"""Run: what a training was, as `run.json` beside its weights. A run is a dataset and a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeInt

from voxray.config import Config


class Run(Config):
    """What a predictor needs besides the weights, and where they come from."""

    schema_version: int = 1
    name: str
    dataset: str
    """The dataset's name."""
    dataset_file: str | None = None
    """Its file, when the run was trained from one; evaluation finds the original scans through it."""
    licence: str
    """The dataset's licence: it binds the weights too."""
    classes: tuple[str, ...]
    """Foreground class names: detection class k is ``classes[k]``, label k is ``classes[k - 1]``."""
    recipe: dict[str, Any]
    """The recipe as it was, every field; parsed with the table of networks."""
    fold: NonNegativeInt | None = None
    train_cases: tuple[str, ...] = ()
    val_cases: tuple[str, ...] = ()
    seed: NonNegativeInt = 0
    commit: str = "unknown"
    """The git commit of the code, with ``+dirty`` where files had changed."""
    voxray_version: str

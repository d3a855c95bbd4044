"""Run: what a training was, as `run.json` beside its weights. A run is a dataset and a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from voxray.core.config import Config


class DataVersion(Config):
    """The content of the store that a training read, from some epoch on."""

    digest: str
    """Of all cases; the folder ``data`` beside `run.json` has a file of this name with a digest of each."""
    sides: str
    """A digest of the sides that the fold gives these cases; those of a run differ where its data have changed."""
    store: str
    num_cases: NonNegativeInt
    after_epoch: NonNegativeInt = 0
    """Epochs that had been trained before."""
    changes: str = ""
    """What had changed since the version before, in words."""


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
    num_slots: PositiveInt | None = None
    """The global batch of a step is so many times the recipe's batch size, whatever the number of workers; None where
    an earlier voxray trained it."""
    data: tuple[DataVersion, ...] = ()
    """The data that it was trained on, oldest first; empty where an earlier voxray trained it."""
    left_as_it_is: tuple[str, ...] = ()
    """Digests of later data of its store, which it was not trained on as it had finished; that was accepted."""
    commit: str = "unknown"
    """The git commit of the code, with ``+dirty`` where files had changed."""
    voxray_version: str

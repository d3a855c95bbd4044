"""What is known of a model from its files, without its weights."""

from __future__ import annotations

from pathlib import Path

from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.inference.package import is_package, read_package
from voxray.runtimes import backend
from voxray.serving.config import ServedModel
from voxray.serving.messages import ModelInfo
from voxray.training.checkpoint import read_best_run, recipe_of


def card(name: str, model: ServedModel) -> ModelInfo:
    """What is known of a model from its files, without its weights."""
    if model.runtime != "auto":
        backend(model.runtime)
    run, recipe = about(model)
    return ModelInfo(
        name=name,
        task=recipe.task,
        classes=run.classes,
        labels={kind: value for value, kind in enumerate(run.classes, start=1)},
        description=f"{recipe.name}, trained on {run.dataset}",
        dataset=run.dataset,
        licence=run.licence,
        grid=recipe.grid,
    )


def about(model: ServedModel) -> tuple[Run, Recipe]:
    """The run and the recipe of a package or a run's folder."""
    if is_package(model.path):
        package, recipe = read_package(Path(model.path))
        return package.run, recipe
    run = read_best_run(model.path)
    return run, recipe_of(run, where=f"{model.path}: recipe")

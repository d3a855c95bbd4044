"""`voxray sweep`: the settings of a search space that score best for a run, and their worth on unseen cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from voxray.core.addresses import local_path
from voxray.core.errors import ConfigError
from voxray.core.progress import Progress
from voxray.core.recipe import parse_recipe
from voxray.core.run import Run
from voxray.core.storage import Location, Place
from voxray.metrics.coco import IOUS
from voxray.models import MODELS
from voxray.sweeping.merge_sweep import sweep_merges
from voxray.sweeping.optuna_study import SAMPLERS
from voxray.sweeping.search_space import Space, read_space
from voxray.sweeping.sweep_report import SweepOptions, SweepReport, sweep_folder
from voxray.sweeping.training_trials import sweep_trainings
from voxray.training.checkpoint import read_best_run

Executor = Literal["ask", "tune"]
EXECUTORS: tuple[Executor, ...] = ("ask", "tune")


def sweep(
    runs: Sequence[str], space_file: Path, output: Location | None, options: SweepOptions, *, progress: Progress
) -> SweepReport:
    """The best setting of the space for the runs: one run, or several that are folds of one training."""
    _check(options)
    abouts = [read_best_run(run) for run in runs]
    _require_alike(runs, abouts)
    recipe = parse_recipe(abouts[0].recipe, MODELS, where=f"{runs[0]}: run.json")
    space = read_space(space_file, recipe)
    if options.ious != IOUS and (space.trains or recipe.task != "detection"):
        raise ConfigError("--ious: is for a detection whose merge is swept; leave it out.")
    search = sweep_trainings if space.trains else sweep_merges
    with sweep_folder(output or _default_folder(runs[0], space), runs) as folder:
        return search(runs, abouts[0], space, folder, options, progress=progress)


def _default_folder(run: str, space: Space) -> Location:
    path = local_path(run)
    return Place.of(run).below(f"sweeps/{space.name}").uri if path is None else path / "sweeps" / space.name


def _check(options: SweepOptions) -> None:
    for name, allowed in (("sampler", SAMPLERS), ("executor", EXECUTORS)):
        if getattr(options, name) not in allowed:
            raise ConfigError(f"--{name} {getattr(options, name)}: no such {name}; allowed are {', '.join(allowed)}.")
    if options.executor == "tune" and options.sampler in ("grid", "greedy"):
        raise ConfigError(
            f"--executor tune: has no sampler {options.sampler}; use tpe or random, or the executor ask."
        )


def _require_alike(runs: Sequence[str], abouts: Sequence[Run]) -> None:
    """Folds of one training: the same classes and recipe, and no case twice."""
    seen: dict[str, str] = {}
    for run, about in zip(runs, abouts, strict=True):
        if about.classes != abouts[0].classes or about.recipe != abouts[0].recipe:
            raise ConfigError(
                f"{run}: has other classes or another recipe than {runs[0]}; sweep folds of one training."
            )
        for case in about.val_cases:
            if case in seen:
                raise ConfigError(f"{run}: validated on case {case}, as {seen[case]} did; give each fold once.")
            seen[case] = run

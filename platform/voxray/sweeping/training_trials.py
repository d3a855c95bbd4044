"""Sweeps that train: every trial is a training like any other, in a folder of its own; Tune proposes and stops them.

The trials train on the run's training cases and are chosen on half of its validation patients; the other half never
has a say, and both the run's own network and the best trial's answer it at the end.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxray.core.config import Setting
from voxray.core.errors import ConfigError
from voxray.core.progress import Progress, SilentProgress
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.distributed.cluster import connect
from voxray.distributed.losses import MAX_DEATHS
from voxray.distributed.mlflow_in_run import place_of
from voxray.distributed.mlflow_run import PARENT, end_unfinished, open_sweep
from voxray.distributed.mlflow_server import tracking_uri
from voxray.distributed.placement_groups import give_back_room
from voxray.distributed.training import TrainOptions, foresee, train
from voxray.inference.predictor import Predictor
from voxray.runtimes.device import choose_device
from voxray.store import Store
from voxray.sweeping.optuna_study import Plan, SweepStudy, distribution, key, quiet
from voxray.sweeping.parts import parts_of
from voxray.sweeping.search_space import Space
from voxray.sweeping.sweep_report import (
    Figure,
    SweepFolder,
    SweepOptions,
    SweepReport,
    digest,
    ended_with,
    importance_of,
    write_sweep,
)
from voxray.tasks import build_task
from voxray.training.checkpoint import SETTING, find_state, load_model, read_run
from voxray.training.crossval_folder import STORE, is_crossval
from voxray.training.data import changed_since

if TYPE_CHECKING:
    from ray.tune import Callback
    from ray.tune.search.optuna import OptunaSearch

TRIALS = "trials"
_DRIVER_CPUS = 0.1
"""Logical CPUs of the process that only waits for a trial's workers."""
_RUNGS = 8
"""A trial may be stopped after this part of its epochs, and at every doubling."""


@dataclass(frozen=True)
class TrialJob:
    """What every trial trains, small enough to travel."""

    about: Run
    space: Space
    store: str
    folder: str
    val_cases: tuple[str, ...]
    share: int
    """Trials that run at once."""
    tracking: str
    parent: str
    """The sweep's MLflow run."""


def sweep_trainings(
    runs: Sequence[str], about: Run, space: Space, folder: SweepFolder, options: SweepOptions, *, progress: Progress
) -> SweepReport:
    """The best setting for a training like that of the run."""
    begin, trials = time.monotonic(), folder.place.below(TRIALS)
    if len(runs) > 1:
        raise ConfigError(f"{space.path}: names {_first_trained(space)}, so every trial trains; give one run only.")
    if options.sampler not in ("tpe", "random"):
        raise ConfigError(f"--sampler {options.sampler}: a space that trains is searched by tpe or random.")
    store = _store_of(runs[0], options)
    store.require(space.recipe)
    tune_on, unseen = _halves(about, store, options)
    _require_data(runs[0], about, store, trials, progress)
    for warning in foresee(store, space.recipe, about.model_copy(update={"val_cases": tune_on})):
        progress.say(warning)
    uri = tracking_of_trials(runs[0])
    params = {"space": str(space.path), "trials": str(_trials(space, options)), "seed": str(options.seed)}
    name = f"sweep {about.name} {space.name}"
    tracking = open_sweep(about, folder.path, uri=uri, name=name, params=params, say=progress.say)
    job = TrialJob(about, space, store.uri, trials.uri, tune_on, options.workers, uri, tracking.run_id)
    try:
        with ended_with(tracking):
            plan = Plan(_trials(space, options), seed=options.seed)
            # Before any trial goes on: those that were begun are of the same cases, or the study is refused.
            study = SweepStudy(folder.journal(), "all cases", space, plan, about=_about(job, store))
            with connect():
                _search(job, options, progress)
            best = _add_trials(study, job)
            report = _report(runs[0], job, study, best=best, unseen=unseen)
            report = replace(report, output=folder.name, seconds=time.monotonic() - begin)
            write_sweep(report, study, folder.path, tracking)
    finally:
        for trial in _folders(job):
            end_unfinished(trial, uri, say=progress.say)
    return report


def tracking_of_trials(run: str) -> str:
    """Where MLflow is for trials, each in a process that may be on any node; a ConfigError where it cannot be."""
    uri = tracking_uri(run)
    if place_of(uri) is not None and os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            f"{run}: its trials train on any node, and MLflow without a server keeps its tables on one; start an "
            f"MLflow server, and set MLFLOW_TRACKING_URI to it."
        )
    return uri


def train_one(config: dict[str, Any], job: TrialJob) -> None:
    """One trial, in a process of its own: a training that tells Tune of every validation."""
    from ray import tune

    os.environ |= {"MLFLOW_TRACKING_URI": job.tracking, PARENT: job.parent}
    location = f"{job.folder}/{tune.get_context().get_trial_id()}"
    Place.of(location).write(SETTING, key(config).encode())
    # The run's own cases, not those of the store's fold: a cross-validation may have had other folds.
    sides = job.about.train_cases, job.val_cases
    options = TrainOptions(
        fold=job.about.fold, seed=job.about.seed, sides=sides, share=job.share, slots=job.about.num_slots
    )
    train(job.store, job.space.recipe_of(config), location, options, progress=SilentProgress())


def _search(job: TrialJob, options: SweepOptions, progress: Progress) -> None:
    """Runs the trials, or those that an interruption left."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    metric, epochs = _metric(job), job.space.recipe.optim.epochs
    path, system = Place.of(f"{job.folder.rpartition('/')[0]}/tune").arrow()
    trials = {"path": f"{path}/trials", "storage_filesystem": system}
    trainable = tune.with_resources(tune.with_parameters(train_one, job=job), {"CPU": _DRIVER_CPUS})
    with quiet(), progress.track("sweep", total=_trials(job.space, options), unit="trainings") as advance:
        if tune.Tuner.can_restore(**trials):
            tuner = tune.Tuner.restore(**trials, trainable=trainable, resume_unfinished=True, resume_errored=True)
        else:
            scheduler = ASHAScheduler(
                time_attr="epoch",
                max_t=epochs + 1,  # a trial that reaches its last epoch ends by itself
                grace_period=max(1, epochs // _RUNGS, min(job.space.recipe.optim.validate_every, epochs)),
                reduction_factor=2,
            )
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    metric=f"val/{metric}",
                    mode="max",
                    search_alg=_algorithm(job, options, metric),
                    scheduler=scheduler,
                    num_samples=_trials(job.space, options),
                    max_concurrent_trials=options.workers,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=path,
                    storage_filesystem=system,
                    verbose=0,
                    callbacks=[_after_each(job.folder)],
                    # A trial that is begun again goes on from its last checkpoint.
                    failure_config=tune.FailureConfig(max_failures=MAX_DEATHS),
                ),
            )
        results = tuner.fit()
        advance(len(results))
    if results.num_errors == len(results):
        raise results.errors[0]


def _after_each(folder: str) -> Callback:
    """What Tune does when a trial has ended: one that it has stopped cannot tidy up behind itself."""
    from ray import tune

    class GiveBack(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[tune.Trial], trial: tune.Trial, **info: Any) -> None:
            del iteration, trials, info
            give_back_room(f"{folder}/{trial.trial_id}")

        on_trial_error = on_trial_complete

    return GiveBack()


def _algorithm(job: TrialJob, options: SweepOptions, metric: str) -> OptunaSearch:
    from optuna.samplers import RandomSampler, TPESampler
    from ray.tune.search.optuna import OptunaSearch

    if options.sampler == "random":
        sampler: Any = RandomSampler(seed=options.seed)
    else:
        sampler = TPESampler(seed=options.seed, multivariate=True, group=False, constant_liar=True)
    space = {
        field: distribution(spread, whole=field in job.space.whole) for field, spread in job.space.fields.items()
    }
    return OptunaSearch(space=space, metric=f"val/{metric}", mode="max", sampler=sampler)


def _add_trials(study: SweepStudy, job: TrialJob) -> str | None:
    """Every trial that was validated, as one of the study; the folder of the best."""
    from optuna.trial import create_trial

    known = {key(trial.params) for trial in study.finished()}
    best, folder_of_best = -math.inf, None
    for folder in _folders(job):
        state = find_state(folder)
        if state is None or state.best_value is None:
            continue
        setting = json.loads(Place.of(folder).read(SETTING))
        if key(setting) not in known:
            with quiet():
                trial = create_trial(params=setting, distributions=study.distributions, value=state.best_value)
                study.study.add_trial(trial)
                study.journal.flush()
        if state.best_value > best:
            best, folder_of_best = state.best_value, folder
    return folder_of_best


def _report(run: str, job: TrialJob, study: SweepStudy, *, best: str | None, unseen: tuple[str, ...]) -> SweepReport:
    """The run's own network and the best trial's, on the cases of the search and on those that it never saw."""
    store = Store.open(job.store)
    setting: Setting = {} if best is None else json.loads(Place.of(best).read(SETTING))
    figures = [
        Figure(len(cases), own=_score(run, store, cases), tuned=_score(best or run, store, cases))
        for cases in (job.val_cases, unseen)
        if cases
    ]
    if figures[0].tuned <= figures[0].own:
        setting, figures = {}, [Figure(one.cases, one.own, one.own) for one in figures]
    return SweepReport(
        output="",
        space=job.space.name,
        metric=_metric(job),
        setting=setting,
        seen=figures[0],
        unseen=figures[1] if unseen else None,
        parts={},
        trials=len(study.finished()),
        pruned=sum(not getattr(find_state(folder), "finished", False) for folder in _folders(job)),
        importance=importance_of(study),
        seconds=0.0,
        cases=job.val_cases,
    )


def _score(run: str, store: Store, cases: Sequence[str]) -> float:
    """The primary metric of the run's best network on cases of the store, on the recipe's grid."""
    about, recipe, model = load_model(run)
    task = build_task(recipe, about.classes)
    predictor = Predictor(about, recipe, model, choose_device("auto"))
    truth = [store.read_case(case) for case in cases]
    return float(task.score([predictor.predict_grid(case) for case in truth], truth)[task.primary_metric])


def _halves(about: Run, store: Store, options: SweepOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The validation cases that choose, and those that judge."""
    if not about.val_cases:
        raise ConfigError(f"run {about.name} validated on no cases; sweep a run of a fold.")
    for what, cases in (("validated", about.val_cases), ("trained", about.train_cases)):
        gone = [case for case in cases if case not in store.manifest.cases]
        if gone:
            raise ConfigError(f"{store.uri}: has no case {gone[0]}, on which run {about.name} {what}.")
    if options.same_cases:
        sides: tuple[tuple[str, ...], ...] = (about.val_cases, ())
    else:
        patients = [store.manifest.cases[case].patient_id for case in about.val_cases]
        first, second = parts_of([0] * len(patients), patients, options.seed)
        sides = tuple(tuple(about.val_cases[index] for index in side) for side in (second, first))
    tiles = store.tiles.select(["case_id", "has_foreground"]).to_pylist()
    full = {tile["case_id"] for tile in tiles if tile["has_foreground"]}
    if any(side and not full & set(side) for side in sides):
        raise ConfigError(
            f"{store.uri}: a half of the {len(about.val_cases)} cases on which run {about.name} validated holds "
            f"nothing to find, so it scores nothing; give another --seed, a run with more cases, or --same-cases."
        )
    return sides[0], sides[1]


def _require_data(run: str, about: Run, store: Store, trials: Place, progress: Progress) -> None:
    """Says where the run was trained on other data; trials on other data could not be compared, and are refused."""
    if what := changed_since(run, about, store):
        progress.say(
            f"run {about.name} was trained on other data than {store.uri} holds now, on which trials train: {what}"
        )
    for name in trials.folders("."):
        place = trials.below(name)
        if place.exists("run.json") and (what := changed_since(place.uri, read_run(place.uri), store)):
            raise ConfigError(
                f"{trials.uri}: holds trials that were trained on other data than {store.uri} holds now: {what}; "
                f"sweep into another folder with --out."
            )


def _store_of(run: str, options: SweepOptions) -> Store:
    """The store that the trials train on: that beside the run, or of the cross-validation that it is a fold of."""
    home = Place.of(run).uri
    parent = home.rpartition("/")[0]
    place = options.data or (f"{parent}/{STORE}" if is_crossval(parent) else f"{home}-store")
    if Path(place).suffix in (".toml", ".json"):
        raise ConfigError(f"--data {place}: trials share a store; make one with `voxray ingest` and give that.")
    if options.data is None and not Place.of(place).exists("manifest.json"):
        raise ConfigError(f"{place}: no store there; say which one the run was trained on, with --data STORE.")
    return Store.open(place)


def _folders(job: TrialJob) -> list[str]:
    place = Place.of(job.folder)
    return [f"{job.folder}/{name}" for name in place.folders(".")]


def _metric(job: TrialJob) -> str:
    return build_task(job.space.recipe, job.about.classes).primary_metric


def _trials(space: Space, options: SweepOptions) -> int:
    return options.trials or space.file.trials


def _about(job: TrialJob, store: Store) -> str:
    """Which cases the trials are trained and judged on, by what their shards hold and not by where the store is."""
    sides = job.val_cases, job.about.train_cases
    return digest(*(f"{case} {store.manifest.cases[case].signature}" for side in sides for case in sorted(side)))


def _first_trained(space: Space) -> str:
    return next(field for field in space.fields if field.split(".")[0] not in ("merge", "inference"))

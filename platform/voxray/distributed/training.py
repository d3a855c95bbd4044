"""Train: a recipe on a store, on Ray Train or in this process; stopped for whatever reason, it goes on.

The truth about a run is its folder: Ray only places the workers, starts them again when one is lost, and passes
numbers on. Every worker group begins at the folder's last checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from pydantic import TypeAdapter

from voxray import __version__
from voxray.core.config import to_json
from voxray.core.errors import ConfigError, ResourceError
from voxray.core.progress import Progress
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.core.text import first_few
from voxray.dataset import CaseSource, split
from voxray.dataset.folds import CsvSides, Folds, Lists, Luna16Subsets
from voxray.distributed.cluster import connect
from voxray.distributed.demand import cluster_demand
from voxray.distributed.mlflow_run import REMEMBERED, Tracking, open_tracking
from voxray.distributed.placement import Placement, place_workers
from voxray.distributed.run_follower import Follower, NotesWaits, following
from voxray.distributed.stopping import LocalStop, RayStop, Signals, grace_s, own_interrupt, stoppable_trainer
from voxray.distributed.train_worker import TrainJob, schedule_of, train_here, train_on_ray
from voxray.distributed.training_metrics import loss_counter
from voxray.distributed.watchdog import listener, wait_limit_s, watched
from voxray.loading.inputs import keep_out_of_store
from voxray.store import Store
from voxray.training.checkpoint import RunState, find_state, place_of, read_state, require_run_folder
from voxray.training.data import Planned, claim_run, plan_run
from voxray.training.preflight import SplitSummaries, data_findings, judged, recipe_findings
from voxray.training.run_files import HISTORY, forget_earlier_start, read_failure, read_progress_file
from voxray.training.source_commit import git_commit

if TYPE_CHECKING:
    from ray.train.callbacks import UserCallback

MAX_FAILURES = 3
"""Times that lost workers are started again without a checkpoint being written in between."""

WORKER_ENV = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait make a step ten times slower where other processes want the cores too."""

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_TIMEOUT_S, ELASTIC_START_TIMEOUT_S = 60.0, 30.0
"""How long Ray Train waits for all workers of a group before it asks anew, or for fewer where that will do."""
_USERS_TIMEOUT = os.environ.get(START_TIMEOUT)

STALLED_WORKER_S = 3600
"""How long a worker waits for the others, such as while rank 0 scores a validation."""


@dataclass(frozen=True)
class TrainOptions:
    """What may be said besides what to train on what and where to."""

    fold: int | None = 0
    """The fold that validates; None trains on all cases."""
    workers: int = 1
    """Ray workers, at the most; 0 trains in this process, without Ray."""
    min_workers: int | None = None
    """With how many training goes on where nodes are lacking; None: with all of them only."""
    slots: int | None = None
    """The global batch of a new run, in batches of the recipe's size; None: one for each of `workers`."""
    gpus: int | None = None
    """GPUs per worker, 0 or 1; None takes one where the cluster has GPUs, or may add nodes with them."""
    seed: int = 0
    name: str | None = None
    """The run's name; by default that of its folder."""
    sides: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """The cases that train and that validate, in place of those of the fold."""
    folds: Folds | None = None
    """In place of the dataset's own."""
    share: int = 1
    """Trainings that share the cluster."""
    accept_changed_data: bool = False
    """Whether a run goes on where its store is no longer what it was trained on."""
    checkpoint_minutes: float = 10.0
    """Between checkpoints within an epoch; 0: only at the ends of epochs."""


@dataclass(frozen=True)
class TrainReport:
    """What a training came to."""

    output: str
    name: str
    epochs: int
    resumed_after: int
    """Epochs that had been done before this call, and steps of the next."""
    resumed_steps: int
    metric: str | None
    best_value: float | None
    best_epoch: int
    metrics: Mapping[str, float]
    """Of the last validation."""
    loss: float
    num_skipped: int
    wait_share: float
    """Of the steps' time, spent waiting for patches; without the first epoch, in which the readers start."""
    seconds: float
    tracking: str

    def __str__(self) -> str:
        begin = f"{self.output}: {self.epochs} epochs"
        if self.resumed_after == self.epochs:
            return f"{begin}, finished before; best checkpoint {self._best()}."
        steps = f" and {self.resumed_steps} steps" if self.resumed_steps else ""
        went_on = f", went on after {self.resumed_after}{steps}" if self.resumed_after or steps else ""
        skipped = f", {self.num_skipped} steps skipped" if self.num_skipped else ""
        return (
            f"{begin} in {self.seconds:.0f} s{went_on}; loss {self.loss:.4g}{skipped}, {self.wait_share:.1%} of the "
            f"time waiting for patches; best checkpoint {self._best()}; MLflow: {self.tracking}"
        )

    def _best(self) -> str:
        value = "" if self.best_value is None else f" with {self.metric} {self.best_value:.3f}"
        return f"epoch {self.best_epoch}{value}"


def train(
    source: str | Path, recipe: Recipe, output: str | Path, options: TrainOptions, *, progress: Progress
) -> TrainReport:
    """Trains `recipe` on a store into the run folder `output`.

    Where `output` holds the same run already, it goes on from its last checkpoint; another run there is refused, and
    so are other data than it was trained on.
    """
    begin = time.monotonic()
    location = Place.of(output).uri
    grace_s()  # what cannot be read is refused before anything starts
    judged(recipe_findings(recipe), recipe.name)
    require_run_folder(location)
    keep_out_of_store(location, source)
    store = Store.open(source)
    planned = plan(store, recipe, location, options)
    for remark in planned.remarks:
        progress.say(remark)
    run = claim_run(location, planned)
    before = find_state(location)
    if before is None or not before.finished:
        every_s = 60 * options.checkpoint_minutes or None
        _train(TrainJob(run, store.uri, location, every_s), recipe, options=options, progress=progress)
    return report_of(location, run, before, seconds=time.monotonic() - begin)


def plan(store: Store, recipe: Recipe, location: str, options: TrainOptions) -> Planned:
    """The training as it will be, before anything is written; a ConfigError where it must not be."""
    name = options.name or location.rpartition("/")[2]
    wanted = new_run(store, recipe, name=name, options=options)
    planned = plan_run(location, wanted, store, accept=options.accept_changed_data)
    state = find_state(location)
    if state is not None and state.finished:
        return planned
    run = planned.run
    if run.num_slots is None:  # begun by an earlier voxray
        run = run.model_copy(update={"num_slots": _slots(options)})
    said = _shared_batch(location, run, recipe, options.workers)
    remarks = (*planned.remarks, *said, *foresee(store, recipe, run))
    return replace(planned, run=run, remarks=remarks)


def _slots(options: TrainOptions) -> int:
    return options.slots or max(options.workers, 1)


def _shared_batch(location: str, run: Run, recipe: Recipe, workers: int) -> tuple[str, ...]:
    """What is to be said where the workers are not as many as the slots of the global batch."""
    slots, used = run.num_slots or 1, max(workers, 1)
    if used == slots:
        return ()
    batch = f"{location}: its global batch is {slots} x {recipe.optim.batch_size} patches, and stays so"
    if used < slots:
        return (f"{batch}; {used} of {slots} workers compute it, each its part one after another.",)
    return (f"{batch}: it has work for {slots} workers, and no more of the {used} are used.",)


def foresee(store: Store, recipe: Recipe, run: Run) -> tuple[str, ...]:
    """Warnings of what can hardly be learnt; a ConfigError where nothing can be, by what is known of the cases."""
    train_cases, val_cases = store.summaries(run.train_cases), store.summaries(run.val_cases)
    sides = SplitSummaries(run.classes, train_cases, val_cases, validates=run.fold is not None)
    schedule = schedule_of(recipe, run)
    return judged([*recipe_findings(recipe), *data_findings(recipe, sides, schedule)], store.uri)


def new_run(store: Store, recipe: Recipe, *, name: str, options: TrainOptions) -> Run:
    """The run that this training is, before anything is known of an earlier one."""
    store.require(recipe)
    dataset = store.manifest.dataset
    train_cases, val_cases = options.sides or split_store(store, options.fold, options.folds)
    return Run(
        name=name,
        dataset=dataset["name"],
        dataset_file=dataset.get("file"),
        licence=dataset["licence"],
        classes=store.manifest.classes,
        recipe=json.loads(to_json(recipe)),
        fold=options.fold,
        train_cases=train_cases,
        val_cases=val_cases,
        seed=options.seed,
        num_slots=_slots(options),
        commit=git_commit(),
        voxray_version=__version__,
    )


def split_store(
    store: Store, fold: int | None, folds: Folds | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The case ids that train and that validate, of those that the store holds, by `folds` or the dataset's own."""
    sides = split(stored_sources(store), folds_of(store, folds), fold)
    stored = store.manifest.cases
    train_cases, val_cases, test_cases = (
        tuple(one for one in side if one in stored) for side in (sides.train_ids, sides.val_ids, sides.test_ids)
    )
    if not train_cases:
        raise _set_aside(store, fold, "train", sides.train_ids)
    if not val_cases and sides.val_ids:
        raise _set_aside(store, fold, "validate", sides.val_ids)
    if fold is not None and not val_cases and not test_cases:
        raise _set_aside(store, fold, "test", sides.test_ids)
    return train_cases, val_cases


def _set_aside(store: Store, fold: int | None, what: str, cases: tuple[str, ...]) -> ConfigError:
    which = "without a fold" if fold is None else f"fold {fold}"
    return ConfigError(
        f"{store.uri}: {which}: none of the cases that should {what} ({first_few(cases, 5)}) is in the store, where "
        f"they were set aside ({store.manifest.failed[cases[0]].message}); mend them and run `voxray ingest` again, "
        f"or take another fold."
    )


def stored_sources(store: Store) -> list[CaseSource]:
    """All cases of the store's dataset, as far as folds go; those that were set aside have their place in them."""
    manifest = store.manifest
    sources = [CaseSource(case_id, entry.patient_id, entry.image) for case_id, entry in manifest.cases.items()]
    return sources + [
        CaseSource(case_id, entry.patient_id or case_id, entry.image)
        for case_id, entry in manifest.failed.items()
        if entry.image or not isinstance(folds_of(store), Luna16Subsets)
    ]


def folds_of(store: Store, folds: Folds | None = None) -> Folds:
    """The folds of the store's dataset, or those given; lists may name cases that it does not hold."""
    chosen: Folds = folds or TypeAdapter(Folds).validate_python(store.manifest.dataset["folds"])
    return chosen.model_copy(update={"partial": True}) if isinstance(chosen, Lists | CsvSides) else chosen


def report_of(location: str, run: Run, before: RunState | None, *, seconds: float) -> TrainReport:
    """What the run's folder says now."""
    state = read_state(location)
    history = read_progress_file(location, HISTORY) or [{}]
    validated = [row for row in history if any(name.startswith("val/") for name in row)] or [{}]
    remembered = read_progress_file(location, REMEMBERED) or {}
    return TrainReport(
        output=location,
        name=run.name,
        epochs=state.epochs_done,
        resumed_after=before.epochs_done if before else 0,
        resumed_steps=before.steps_done if before else 0,
        metric=state.metric,
        best_value=state.best_value,
        best_epoch=place_of(state.best)[0],
        metrics={name.removeprefix("val/"): v for name, v in validated[-1].items() if name.startswith("val/")},
        loss=float(history[-1].get("loss/total", math.nan)),
        num_skipped=int(sum(row.get("num_skipped", 0) for row in history)),
        wait_share=float(np.mean([row.get("wait_share", 0.0) for row in history[1:] or history])),
        seconds=seconds,
        tracking=str(remembered.get("uri", "")),
    )


def _train(job: TrainJob, recipe: Recipe, *, options: TrainOptions, progress: Progress) -> None:
    forget_earlier_start(job.location)
    num_steps = schedule_of(recipe, job.run).steps_per_epoch
    state = find_state(job.location)
    steps_done = state.epochs_done * num_steps + state.steps_done if state else 0
    with (
        tracked(job, progress) as tracking,
        progress.track("train", total=recipe.optim.epochs * num_steps - steps_done, unit="steps") as advance,
    ):
        follower = Follower(job.location, tracking, progress, num_steps=num_steps, steps_done=steps_done)
        with following(follower, advance):
            if options.workers == 0:
                line = LocalStop()
                with own_interrupt(line, progress):
                    train_here(job, line)
            else:
                train_on_cluster(job, options, progress=progress, steps_done=lambda: follower.steps_done)


@contextmanager
def tracked(job: TrainJob, progress: Progress) -> Iterator[Tracking]:
    """The training's MLflow run, ended as it deserves."""
    tracking = open_tracking(job.run, job.location, say=progress.say)
    try:
        _track_data(tracking, job.run)
        yield tracking
    except (KeyboardInterrupt, SystemExit):
        tracking.end("KILLED")
        raise
    except BaseException:
        tracking.end("FAILED")
        raise
    tracking.end("FINISHED")


def _track_data(tracking: Tracking, run: Run) -> None:
    """The data's digest as a tag; and where they have changed, what was written of the run again."""
    tracking.tag("data", run.data[-1].digest if run.data else "unknown")
    if len(run.data) > 1:
        tracking.tag("data_changes", "; ".join(f"after epoch {v.after_epoch}: {v.changes}" for v in run.data[1:]))
        tracking.log_file("run.json", to_json(run).encode())


def train_on_cluster(
    job: TrainJob, options: TrainOptions, *, progress: Progress, steps_done: Callable[[], float]
) -> None:
    """Runs the workers on Ray until the last epoch; those that are lost are started again.

    While no step is done, what the workers wait for is said.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    workers = min(options.workers, job.run.num_slots or 1)
    at_least = min(options.min_workers or workers, workers)
    os.environ[START_TIMEOUT] = _USERS_TIMEOUT or f"{_start_timeout_s(at_least < workers):g}"
    with connect(), watched(listener(NotesWaits(progress, job.location)), steps_done):
        placement = place_workers(workers, options.gpus, share=options.share, at_least=at_least)
        done, line = (-1, 0), RayStop()
        while (now := _place(job.location)) > done:
            done = now
            with own_interrupt(line, progress) as signals:
                lost = _fit(job, placement, line=line, signals=signals)
            if lost is None:
                return
    raise ResourceError(
        f"training workers were lost {MAX_FAILURES + 1} times before a checkpoint was written ({lost}); see that "
        f"nodes have memory for the batch and for validation, then run the same command again."
    )


def _fit(job: TrainJob, placement: Placement, *, line: RayStop, signals: Signals | None) -> str | None:
    """Runs one Ray Train job; why workers were lost too often, or None where it ended well."""
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig

    scratch = Place.of(f"{job.location}/.ray")
    path, system = scratch.arrow()
    trainer = stoppable_trainer(signals)(
        train_on_ray,
        train_loop_config={**job.to_dict(), "max_threads": placement.max_threads, "stop_request": line.actor},
        torch_config=TorchConfig(backend="nccl" if placement.on_gpu else "gloo", timeout_s=STALLED_WORKER_S),
        scaling_config=ScalingConfig(
            num_workers=placement.span, use_gpu=placement.on_gpu, resources_per_worker=placement.resources()
        ),
        run_config=RunConfig(
            name=uuid4().hex,
            worker_runtime_env={"env_vars": WORKER_ENV},
            storage_path=path,
            storage_filesystem=system,
            failure_config=FailureConfig(
                max_failures=MAX_FAILURES, controller_failure_limit=_num_restarts(placement)
            ),
            callbacks=_callbacks(),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except ControllerError as error:
        raise _not_started(error.controller_failure, placement) from error
    except WorkerGroupError as error:
        known = read_failure(job.location)
        if known is not None:
            raise known from error
        lost = [cause for cause in error.worker_failures.values() if isinstance(cause, RayActorError)]
        if not lost:
            raise
        return _first_line(lost[0])
    finally:
        with suppress(ResourceError):  # storage that is away must not hide what went wrong
            scratch.once().clear()
    known = read_failure(job.location)
    if known is not None:
        raise known
    return None


def _start_timeout_s(is_elastic: bool) -> float:
    return ELASTIC_START_TIMEOUT_S if is_elastic else START_TIMEOUT_S


def _num_restarts(placement: Placement) -> int:
    """How often Ray Train may ask for all workers anew before it gives up: it waits its timeout each time."""
    return max(0, math.ceil(wait_limit_s() / _start_timeout_s(placement.is_elastic)) - 1)


def _not_started(error: Exception, placement: Placement) -> ResourceError:
    """Why the workers never ran together."""
    found = cluster_demand()
    each = ", ".join(f"{name}: {amount:g}" for name, amount in placement.resources().items())
    reason = f"the cluster lacks {found}" if found else f"Ray says: {_first_line(error)}"
    return ResourceError(
        f"{placement.at_least} training workers of {{{each}}} did not start within {wait_limit_s():g} s: {reason}. "
        f"Add nodes, use fewer workers, or wait longer with --wait-nodes; the same command goes on from the last "
        f"checkpoint."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _callbacks() -> list[UserCallback]:
    """Lost workers are counted; where this training is a trial of Ray Tune, its validations go there."""
    from ray.tune.integration.ray_train import TuneReportCallback

    with suppress(RuntimeError):
        return [loss_counter(), TuneReportCallback()]
    return [loss_counter()]


def _place(location: str) -> tuple[int, int]:
    state = find_state(location)
    return state.place if state else (0, 0)

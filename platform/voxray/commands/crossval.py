"""Cross-validation: every fold trained as a run of its own, and all held-out answers scored once.

One job, which may be stopped anywhere: the same command goes on with the folds that are not finished. What is
finished can be scored and consolidated at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from voxray.commands.ingest import ingest
from voxray.commands.out_of_fold import score_out_of_fold
from voxray.core.apart import keep_apart
from voxray.core.config import parse, to_json
from voxray.core.errors import ConfigError
from voxray.core.evaluation import Evaluation
from voxray.core.progress import Progress
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.dataset import CaseSource, Dataset, num_folds, read_dataset
from voxray.dataset.folds import Folds, KFold, NoFolds, cross_splits, scored_side
from voxray.distributed.cluster import connect
from voxray.distributed.concurrent_trainings import TrainingTask, train_side_by_side
from voxray.distributed.parallel import open_pool
from voxray.distributed.placement import trainings_at_once
from voxray.distributed.training import TrainOptions, folds_of, plan, stored_sources, train
from voxray.loading import list_cases
from voxray.loading.inputs import ELSEWHERE, dataset_inputs, keep_out_of_store, require_no_scan_of
from voxray.store import Store
from voxray.tasks import build_task
from voxray.training.crossval_folder import (
    STORE,
    CrossvalFile,
    claim_crossval,
    finished_folds,
    fold_folder,
    is_crossval,
)
from voxray.training.data import Planned, claim_run
from voxray.training.preflight import judged, recipe_findings


@dataclass(frozen=True)
class CrossvalOptions:
    """Which folds are trained, and how."""

    num_folds: int | None = None
    """Random folds, patient by patient; None: the folds that the dataset's file describes."""
    only: tuple[int, ...] | None = None
    """None: all."""
    workers: int = 1
    """Of each fold; 0 trains in this process."""
    gpus: int | None = None
    at_once: int | None = None
    """Folds side by side; None: as many as the cluster holds with room for each."""
    seed: int = 0
    accept_changed_data: bool = False
    """Whether folds go on where the store is no longer what they were trained on."""
    checkpoint_minutes: float = 10.0
    """Between checkpoints within an epoch; 0: only at the ends of epochs."""


@dataclass(frozen=True)
class CrossvalReport:
    """What a cross-validation has come to so far."""

    output: str
    metric: str
    folds: dict[int, Evaluation]
    """The score of each finished fold on its own held-out cases."""
    unfinished: tuple[int, ...]
    evaluation: Evaluation
    """Of all held-out cases together."""
    seconds: float

    def rows(self) -> list[tuple[str, str, str]]:
        """Fold, number of cases and primary metric, the pooled one last."""
        named = [(f"fold {fold}", one) for fold, one in self.folds.items()] + [("pooled", self.evaluation)]
        return [
            (name, str(len(one.cases)), f"{one.metrics.get(self.metric, float('nan')):.4f}") for name, one in named
        ]


def crossval(
    source: str | Path, recipe: Recipe, output: str | Path, options: CrossvalOptions, *, progress: Progress
) -> CrossvalReport:
    """Trains the folds of a dataset, or of a store of one, that are not finished yet, and scores what is."""
    begin = time.monotonic()
    if options.workers == 0 and (options.at_once or 1) > 1:
        raise ConfigError(f"--at-once {options.at_once}: needs workers of its own for each fold; give --workers 1.")
    place = Place.of(output)
    location = place.uri
    place.require_writable()
    judged(recipe_findings(recipe), recipe.name)
    data, sources, store = _opened(source, recipe)
    if place.is_local:
        keep_apart([Path(location)], dataset_inputs(data), instead=ELSEWHERE)
        require_no_scan_of(data, [Path(location)])
    if store is not None and not is_crossval(location):
        keep_out_of_store(location, store.uri)
    rule = chosen_folds(data.folds, options.num_folds)
    chosen = _chosen(rule, options)
    cross_splits(sources, rule, chosen)
    record = CrossvalFile(
        dataset=data.name,
        recipe=json.loads(to_json(recipe)),
        folds=json.loads(to_json(rule)),
        num_folds=num_folds(rule),
        scored=scored_side(rule),
        seed=options.seed,
    )
    claim_crossval(location, record)
    if store is None:
        ingest(data, recipe, f"{location}/{STORE}", progress=progress)
        store = Store.open(f"{location}/{STORE}")
    trainings = _trainings(store, recipe, location, chosen, rule=rule, options=options)
    planned = _plan(trainings, store, progress)
    done = {fold_folder(location, fold) for fold in finished_folds(location)}
    for folder in done & planned.keys():
        claim_run(folder, planned[folder])
    at_once = _train([one for one in trainings if one.location not in done], options, progress)
    finished = finished_folds(location)
    with open_pool(max(1, options.workers * at_once), device="auto", progress=progress) as pool:
        pooled = score_out_of_fold(location, record, data, finished, store=store, pool=pool, progress=progress)
    return CrossvalReport(
        output=location,
        metric=build_task(recipe, data.classes).primary_metric,
        folds=dict(pooled.folds),
        unfinished=tuple(fold for fold in range(record.num_folds) if fold not in finished),
        evaluation=pooled.evaluation,
        seconds=time.monotonic() - begin,
    )


def chosen_folds(own: Folds, number: int | None) -> Folds:
    """The dataset's folds, or so many random ones in their place where that loses nothing that they say."""
    if number is None:
        if isinstance(own, NoFolds):
            raise ConfigError("folds.kind 'none' has no folds; give their number with --folds K, or describe folds.")
        return own
    if number < 2:
        raise ConfigError(f"--folds {number}: a cross-validation has 2 folds or more.")
    if isinstance(own, KFold | NoFolds):
        fields = own.model_dump() if isinstance(own, KFold) else {}
        return parse(KFold, {**fields, "num_folds": number}, where=f"--folds {number}: folds")
    if num_folds(own) == number:
        return own
    raise ConfigError(
        f"--folds {number}: the dataset's own folds, of kind '{own.kind}', are {num_folds(own)}; leave the option "
        f"out, or describe folds of kind 'kfold' in the dataset's file."
    )


def _opened(source: str | Path, recipe: Recipe) -> tuple[Dataset, list[CaseSource], Store | None]:
    """The dataset, its cases as far as folds go, and its store where there is one already."""
    if Path(str(source)).suffix in (".toml", ".json"):
        data = read_dataset(source)
        return data, list_cases(data.for_task(recipe.task)), None
    store = Store.open(source)
    store.require(recipe)
    data = parse(Dataset, store.manifest.dataset, where=f"{source}: dataset")
    return data.model_copy(update={"folds": folds_of(store)}), stored_sources(store), store


def _chosen(rule: Folds, options: CrossvalOptions) -> tuple[int, ...]:
    every = tuple(range(num_folds(rule)))
    if options.only is None:
        return every
    for fold in options.only:
        if fold not in every:
            raise ConfigError(f"--only {fold}: there are the folds 0 to {every[-1]}.")
    return tuple(sorted(set(options.only)))


def _trainings(
    store: Store, recipe: Recipe, location: str, folds: Sequence[int], *, rule: Folds, options: CrossvalOptions
) -> list[TrainingTask]:
    """The folds, trained already or not."""
    name = location.rpartition("/")[2]
    return [
        TrainingTask(
            name=f"fold {fold}",
            store=store.uri,
            recipe=recipe,
            location=fold_folder(location, fold),
            options=TrainOptions(
                fold=fold,
                folds=rule,
                name=f"{name} fold {fold}",
                workers=options.workers,
                gpus=options.gpus,
                seed=options.seed,
                accept_changed_data=options.accept_changed_data,
                checkpoint_minutes=options.checkpoint_minutes,
            ),
        )
        for fold in folds
    ]


def _plan(trainings: Sequence[TrainingTask], store: Store, progress: Progress) -> dict[str, Planned]:
    """Says what is to be known of every fold, or refuses it, before any trains; the plans by their folders."""
    planned = {one.location: plan(store, one.recipe, one.location, one.options) for one in trainings}
    for one in trainings:
        for remark in planned[one.location].remarks:
            progress.say(f"{one.name}: {remark}")
    return planned


def _train(trainings: Sequence[TrainingTask], options: CrossvalOptions, progress: Progress) -> int:
    """Brings the folds to their last epoch, and says how many went side by side."""
    if not trainings:
        return 1
    with ExitStack() as stack:
        at_once = 1
        if options.workers > 0:
            stack.enter_context(connect())
            at_once = min(options.at_once or trainings_at_once(len(trainings), options.workers), len(trainings))
        if at_once > 1:
            shared = [replace(one, options=replace(one.options, share=at_once)) for one in trainings]
            train_side_by_side(shared, at_once=at_once, progress=progress)
            return at_once
        for one in trainings:
            progress.say(f"{one.name}: {one.location}")
            train(one.store, one.recipe, one.location, one.options, progress=progress)
    return 1

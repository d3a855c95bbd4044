"""Sweeps of merges: what networks said of a run's validation cases is merged anew for each trial; nothing is trained.

A setting that is tuned on some cases looks better on these than it is. So each part of the cases (the folds of
several runs, or two halves of one run's patients) is scored with the setting that was tuned on the other parts alone;
the setting that is handed out is tuned on all of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from voxray.core.config import Setting, get_field
from voxray.core.errors import ConfigError, DataError
from voxray.core.progress import Progress
from voxray.core.recipe import DetectionMerge, Merge
from voxray.core.run import Run
from voxray.distributed.capacity import cluster_capacity
from voxray.distributed.cluster import connect
from voxray.distributed.mlflow_run import open_sweep
from voxray.distributed.mlflow_server import tracking_uri
from voxray.inference.candidates.file import RecordedCase
from voxray.inference.candidates.replay import MergeBounds, Replay
from voxray.metrics.bootstrap import draw_weights
from voxray.metrics.coco import IOUS
from voxray.sweeping.candidate_cases import CaseRequest, content_of_recorded, record_cases
from voxray.sweeping.optuna_study import Plan, Sampler, SweepStudy, TrialResult, key
from voxray.sweeping.parts import parts_of
from voxray.sweeping.ray_tune import tune_settings
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
from voxray.sweeping.trials import MergeTrials, Replays, TrialRunner, open_runner, variant_of
from voxray.tasks import build_task

FINALISTS, NUM_REPLICATES, WORST_SHARE = 10, 200, 0.1
"""Settings that are looked at more closely, in so many replicates, of which this share may be worse.

At one in five, luck among the finalists passed for gain where there was next to none to find (`benchmarks/sweep.py`).
"""
FIRST_SHARE, FIRST_LEAST = 0.2, 4
"""A trial may be given up after this share of its cases, and after so many at the least."""


@dataclass(frozen=True)
class _Cases:
    """The recorded cases of a sweep; every variant has the same in the same order."""

    recorded: Mapping[str, Sequence[RecordedCase]]
    """Variant -> its cases; a variant is one answer of the networks."""
    runs: tuple[int, ...]
    """The number of each case's run."""
    failed: Mapping[str, str]
    """Cases that could not be answered or read, each with its reason."""

    @property
    def of_one_variant(self) -> Sequence[RecordedCase]:
        """Each case once."""
        return next(iter(self.recorded.values()))


@dataclass(frozen=True)
class _Context:
    """What all studies of one sweep have in common."""

    metric: str
    space: Space
    options: SweepOptions
    folder: SweepFolder
    replays: Replays
    networks: str
    """A digest of the networks and of what is tuned for."""
    contents: tuple[str, ...]
    """A digest of each case."""

    @property
    def plan(self) -> Plan:
        """How each study proceeds."""
        options = self.options
        return Plan(options.trials or self.space.file.trials, cast(Sampler, options.sampler), options.seed)

    @property
    def replay(self) -> Replay:
        """That of any variant."""
        return next(iter(self.replays.values()))

    @property
    def every(self) -> tuple[int, ...]:
        """The indices of all cases."""
        return tuple(range(len(self.replay.cases)))


@dataclass(frozen=True)
class _Tuned:
    """A study of some cases that has made its trials, and what proposing those of this call took."""

    study: SweepStudy
    cases: tuple[int, ...]
    search_s: float = 0.0
    num_tried: int = 0


def sweep_merges(
    runs: Sequence[str], about: Run, space: Space, folder: SweepFolder, options: SweepOptions, *, progress: Progress
) -> SweepReport:
    """The best setting of a space that trains nothing, for one run or several that are folds of one training."""
    on_ray = options.workers > 1 or options.executor == "tune" or bool(os.environ.get("RAY_ADDRESS"))
    with connect() if on_ray else nullcontext():
        begin = time.monotonic()
        cases = _cases_of(runs, space, options, progress)
        _require_cases(cases, progress)
        parts = _parts(cases, options, where=runs[0])
        context = _Context(
            metric=build_task(space.recipe, about.classes).primary_metric,
            space=space,
            options=options,
            folder=folder,
            replays=_replays(cases, space, options, progress),
            networks=_digest_of_networks(cases, options),
            contents=tuple(map(content_of_recorded, cases.of_one_variant)),
        )
        tracking = open_sweep(
            about,
            folder.path,
            uri=tracking_uri(runs[0]),
            name=f"sweep {about.name} {space.name}",
            params=_params(context, len(parts)),
            say=progress.say,
        )
        with ended_with(tracking):
            workers = int(cluster_capacity().cpus) if on_ray else 1
            with open_runner(context.replays, workers=max(1, workers), on_ray=on_ray, progress=progress) as runner:
                without_parts, tuned = _tune_all(context, parts, runner, progress)
                report = _report(context, parts, without_parts, tuned)
            report = replace(report, seconds=time.monotonic() - begin, failed=cases.failed)
            write_sweep(report, tuned.study, folder.path, tracking)
    return report


def bounds_of(space: Space) -> MergeBounds:
    """What all trials of the space stay within, and the recipe's own setting, too."""
    own = space.recipe.merge
    if not isinstance(own, DetectionMerge):
        return MergeBounds()
    methods = space.possible("merge.ensemble_method") | {own.ensemble_method}
    return MergeBounds(
        score_floor=min(own.score_floor, space.lowest("merge.score_floor", own.score_floor)),
        tile_iou=min(own.tile_iou, space.lowest("merge.tile_iou", own.tile_iou)),
        pooled="pooled" in methods,
        apart=bool(methods - {"pooled"}),
    )


def _cases_of(runs: Sequence[str], space: Space, options: SweepOptions, progress: Progress) -> _Cases:
    """The recorded cases of all runs, as far as every variant has them."""
    found: dict[str, list[tuple[int, RecordedCase]]] = {}
    failed: dict[str, str] = {}
    for variant in space.variants():
        cases = found.setdefault(key(variant), [])
        for number, run in enumerate(runs):
            request = CaseRequest(
                run,
                dataset=options.dataset,
                root=options.root,
                workers=options.workers,
                device=options.device,
                classes=options.classes,
            )
            recorded, reasons = record_cases(request, variant, progress=progress)
            cases += [(number, one) for one in recorded]
            failed |= reasons
    names = set.intersection(*({one.head.case for _, one in cases} for cases in found.values()))
    shared = {variant: [one for one in cases if one[1].head.case in names] for variant, cases in found.items()}
    return _Cases(
        recorded={variant: tuple(one for _, one in cases) for variant, cases in shared.items()},
        runs=tuple(number for number, _ in next(iter(shared.values()))),
        failed=failed,
    )


def _require_cases(cases: _Cases, progress: Progress) -> None:
    """Says which cases have no part in the sweep; an error where none has."""
    for case, why in cases.failed.items():
        progress.say(f"case {case} has no part in the sweep: {why}")
    if not cases.of_one_variant:
        case, why = next(iter(cases.failed.items()))
        text = f"none of {len(cases.failed)} cases can be swept; case {case}: {why}"
        raise DataError("sweep.nothing", text, remedy="Mend the cases, or sweep a run of another fold.")


def _parts(cases: _Cases, options: SweepOptions, *, where: str) -> list[tuple[int, ...]]:
    """The parts that are scored with what was tuned on the others, by index; none where that is not wanted."""
    recorded = cases.of_one_variant
    if not any(map(_has_object, recorded)):
        raise ConfigError(f"{where}: none of its {len(recorded)} cases holds anything to find; nothing to tune.")
    if options.same_cases:
        return []
    parts = parts_of(cases.runs, [one.head.patient for one in recorded], options.seed)
    for part in parts:
        rest = [one for index, one in enumerate(recorded) if index not in part]
        if not any(map(_has_object, rest)) or not any(_has_object(recorded[index]) for index in part):
            raise ConfigError(
                f"{where}: its {len(recorded)} cases cannot be parted so that each part holds something to find; add "
                f"folds, or tune and report on the same cases with --same-cases."
            )
    return parts


def _has_object(recorded: RecordedCase) -> bool:
    truth = recorded.truth
    return truth is not None and (len(truth.boxes) > 0 or (truth.labels is not None and bool(truth.labels.any())))


def _replays(cases: _Cases, space: Space, options: SweepOptions, progress: Progress) -> Replays:
    bounds, replays = bounds_of(space), {}
    with progress.track("prepare", total=len(cases.recorded), unit="variants") as advance:
        for variant, recorded in cases.recorded.items():
            replays[variant] = Replay.of(recorded, bounds, ious=options.ious)
            advance(1)
    return replays


def _digest_of_networks(cases: _Cases, options: SweepOptions) -> str:
    aim = [] if options.ious == IOUS else [str(options.ious)]
    return digest(*sorted({one.head.model.sha256 for one in cases.of_one_variant}), *aim)


def _params(context: _Context, num_parts: int) -> dict[str, str]:
    """What MLflow shows of how the sweep proceeds."""
    options, space = context.options, context.space
    found = {"space": str(space.path), "sampler": options.sampler, "parts": str(num_parts)}
    if space.recipe.task == "detection":
        found["ious"] = ", ".join(f"{iou:g}" for iou in options.ious)
    return found | {"trials": str(context.plan.trials), "seed": str(options.seed)}


def _tune_all(
    context: _Context, parts: Sequence[tuple[int, ...]], runner: TrialRunner, progress: Progress
) -> tuple[list[_Tuned], _Tuned]:
    """A study without each part, and one of all cases."""
    total = (1 + len(parts)) * context.plan.trials
    with progress.track("sweep", total=total, unit="trials") as advance:
        without = [
            _tune(context, f"without part {number}", _others(context, part), runner, advance)
            for number, part in enumerate(parts)
        ]
        return without, _tune(context, "all cases", context.every, runner, advance)


def _others(context: _Context, part: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(index for index in context.every if index not in set(part))


def _tune(
    context: _Context, name: str, cases: tuple[int, ...], runner: TrialRunner, advance: Callable[[int], None]
) -> _Tuned:
    """A study of some cases, brought to its last trial."""
    about = digest(context.networks, *sorted(context.contents[index] for index in cases))
    study = SweepStudy(context.folder.journal(), name, context.space, context.plan, about=about)
    advance(min(len(study.finished()), context.plan.trials))
    own = context.space.recipe.merge
    if context.options.executor == "tune":
        tune_settings(study, context.replays, MergeTrials(own, cases), advance)
        return _Tuned(study, cases)
    first = max(FIRST_LEAST, math.ceil(FIRST_SHARE * len(cases)))
    order = np.random.default_rng(context.options.seed).permutation(len(cases))
    trials = MergeTrials(own, tuple(cases[index] for index in order), first if first < len(cases) else 0)
    begin, waited_s, num_tried = time.monotonic(), 0.0, 0

    def evaluate(settings: Sequence[Setting], bar: float | None) -> Sequence[TrialResult]:
        nonlocal waited_s, num_tried
        called = time.monotonic()
        results = runner([trials.of(setting, bar) for setting in settings])
        waited_s += time.monotonic() - called
        num_tried += len(settings)
        return results

    study.run(evaluate, on_batch=advance)
    return _Tuned(study, cases, search_s=time.monotonic() - begin - waited_s, num_tried=num_tried)


def _report(
    context: _Context, parts: Sequence[tuple[int, ...]], without_parts: Sequence[_Tuned], tuned: _Tuned
) -> SweepReport:
    settings = [_surest(context, one) for one in without_parts]
    chosen = _surest(context, tuned)
    finished, every, studies = tuned.study.finished(), context.every, [*without_parts, tuned]
    return SweepReport(
        output=context.folder.name,
        space=context.space.name,
        metric=context.metric,
        setting=chosen,
        seen=Figure(len(every), _score(context, {}, every), _score(context, chosen, every)),
        unseen=_unseen(context, parts, settings) if parts else None,
        parts={f"part {number}": setting for number, setting in enumerate(settings)},
        trials=len(finished),
        pruned=sum(trial.state.name == "PRUNED" for trial in finished),
        importance=importance_of(tuned.study),
        seconds=0.0,
        search_ms=1000 * sum(one.search_s for one in studies) / max(1, sum(one.num_tried for one in studies)),
        cases=tuple(case.case for case in context.replay.cases),
        ious=context.options.ious,
    )


def _surest(context: _Context, tuned: _Tuned) -> Setting:
    """Of the study's best settings the one whose gain is surest; nothing where none is sure.

    The highest score among hundreds is the luckiest, too. So the gain over the recipe's own setting is looked at
    in replicates of the cases, and what counts is how large it is in all but the worst tenth of them.
    """
    cases = tuned.cases
    replay, merge = _replay_and_merge(context, {})
    patients = np.unique([replay.cases[index].patient for index in cases], return_inverse=True)[1]
    rng = np.random.default_rng(context.options.seed)
    weights = draw_weights(len(cases), rng=rng, num=NUM_REPLICATES, units=patients)
    own = replay.replicates(merge, cases, weights)
    sure: list[tuple[float, Setting]] = []
    for setting, _ in tuned.study.best(FINALISTS):
        replay, merge = _replay_and_merge(context, setting)
        gains = replay.replicates(merge, cases, weights) - own
        sure.append((float(np.nanquantile(gains, WORST_SHARE)), setting))
    gain, setting = max(sure, key=lambda one: one[0], default=(0.0, {}))
    return setting if gain > 0 else {}


def _score(context: _Context, setting: Setting, cases: tuple[int, ...]) -> float:
    replay, merge = _replay_and_merge(context, setting)
    return replay.score(merge, cases)


def _unseen(context: _Context, parts: Sequence[tuple[int, ...]], settings: Sequence[Setting]) -> Figure:
    """All cases pooled, each merged by the setting that was tuned without it."""
    own, own_merge = _replay_and_merge(context, {})
    merges = [_replay_and_merge(context, setting) for setting in settings]
    part_of = {index: number for number, part in enumerate(parts) for index in part}
    trial = own.trial()
    for index in sorted(part_of):
        replay, merge = merges[part_of[index]]
        trial.add(replay.cases[index], merge)
    return Figure(len(part_of), own.score(own_merge, sorted(part_of)), trial.score())


def _replay_and_merge(context: _Context, setting: Setting) -> tuple[Replay, Merge]:
    """What a setting merges, and how."""
    names_variant = any(name.startswith("inference.") for name in setting)
    variant = variant_of(setting) if names_variant else _own_variant(context)
    return context.replays[variant], context.space.merge_of(setting)


def _own_variant(context: _Context) -> str:
    """The variant that the recipe's own setting is, or the first where it is none of them."""
    own = context.space.recipe.model_dump(mode="json")
    for variant in context.space.variants():
        if all(get_field(own, name) == value for name, value in variant.items()):
            return key(variant)
    return next(iter(context.replays))

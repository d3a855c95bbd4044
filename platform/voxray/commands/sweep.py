"""Sweep: the settings of a merge that score best on a run's kept candidates, and what they are worth on unseen cases.

A setting that is tuned on some cases looks better on these than it is. So each part of the cases (the folds of
several runs, or two halves of one run's patients) is scored with the setting that was tuned on the other parts alone;
the setting that is handed out is tuned on all of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voxray.core.addresses import local_path
from voxray.core.config import Setting
from voxray.core.errors import ConfigError, DataError
from voxray.core.progress import Progress
from voxray.core.recipe import DetectionMerge, parse_recipe
from voxray.core.run import Run
from voxray.distributed.cluster import cluster_total, connect
from voxray.distributed.mlflow_run import open_sweep
from voxray.distributed.mlflow_server import tracking_uri
from voxray.inference.candidates.file import RecordedCase
from voxray.inference.candidates.replay import MergeBounds, Replay
from voxray.metrics.bootstrap import draw_weights
from voxray.metrics.coco import IOUS
from voxray.models import MODELS
from voxray.sweeping.candidate_cases import CaseRequest, content_of_recorded, record_cases
from voxray.sweeping.journal import Journal
from voxray.sweeping.parts import parts_of
from voxray.sweeping.report import (
    JOURNAL,
    Figure,
    SweepOptions,
    SweepReport,
    digest,
    importance_of,
    leave,
    require_sweep_folder,
)
from voxray.sweeping.search_space import Space, read_space
from voxray.sweeping.study import SAMPLERS, Plan, SweepStudy, TrialResult, key
from voxray.sweeping.trials import Replays, Trials, Trier, open_trier
from voxray.training.checkpoint import read_best_run

Executor = Literal["ask", "tune"]
EXECUTORS: tuple[Executor, ...] = ("ask", "tune")
METRICS = {"detection": "mAP", "segmentation": "dice"}

FINALISTS, NUM_REPLICATES, WORST_SHARE = 10, 200, 0.1
"""Settings that are looked at more closely, in so many replicates, of which this share may be worse.

At one in five, luck among the finalists passed for gain where there was next to none to find (`benchmarks/sweep.py`).
"""
FIRST_SHARE, FIRST_LEAST = 0.2, 4
"""A trial may be given up after this share of its cases, and after so many at the least."""


def sweep(
    runs: Sequence[str],
    space_file: Path,
    output: Path | None = None,
    options: SweepOptions | None = None,
    *,
    progress: Progress,
) -> SweepReport:
    """The best setting of the space for the runs: one run, or several that are folds of one training."""
    options = options or SweepOptions()
    _check(options)
    abouts = [read_best_run(run) for run in runs]
    _require_alike(runs, abouts)
    recipe = parse_recipe(abouts[0].recipe, MODELS, where=f"{runs[0]}: run.json")
    space = read_space(space_file, recipe)
    if options.ious != IOUS and (space.trains or recipe.task != "detection"):
        raise ConfigError("--ious: is for a detection whose merge is swept; leave it out.")
    folder = output or _folder_of(runs[0], space)
    require_sweep_folder(folder, runs)
    if space.trains:
        from voxray.sweeping.training_trials import sweep_trainings

        return sweep_trainings(runs, abouts[0], space, folder, options, progress=progress)
    with ExitStack() as stack:
        on_ray = options.workers > 1 or options.executor == "tune" or bool(os.environ.get("RAY_ADDRESS"))
        if on_ray:
            stack.enter_context(connect())
        return _Sweep(runs, abouts[0], space, folder, options, progress).run(on_ray=on_ray)


class _Sweep:
    """One sweep over kept candidates."""

    def __init__(
        self, runs: Sequence[str], about: Run, space: Space, folder: Path, options: SweepOptions, progress: Progress
    ) -> None:
        self._runs, self._about, self._space, self._folder = runs, about, space, folder
        self._options, self._progress = options, progress
        self._metric = METRICS[space.recipe.task]
        self._search_s, self._tried = 0.0, 0
        self._failed: dict[str, str] = {}

    def run(self, *, on_ray: bool) -> SweepReport:
        """The whole of it."""
        begin = time.monotonic()
        kept = _shared({key(variant): self._kept(variant) for variant in self._space.variants()})
        self._require_cases(next(iter(kept.values())))
        one = next(iter(kept.values()))
        sides = self._sides(one)
        replays = self._replays(kept)
        aim = [] if self._options.ious == IOUS else [str(self._options.ious)]
        self._about_cases = digest(*sorted({kept.head.model.sha256 for _, kept in one}), *aim)
        self._contents = {kept.head.case: content_of_recorded(kept) for _, kept in one}
        tracking = open_sweep(
            self._about,
            self._folder,
            uri=tracking_uri(self._runs[0]),
            name=f"sweep {self._about.name} {self._space.name}",
            params=self._params(len(sides)),
            say=self._progress.say,
        )
        status = "FAILED"
        try:
            workers = int(cluster_total("CPU")) if on_ray else 1
            with open_trier(replays, workers=max(1, workers), on_ray=on_ray) as trier:
                report = self._report(replays, sides, trier, begin)
            leave(report, self._study, self._folder, tracking)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracking.end(status)
        return report

    def _report(self, replays: Replays, sides: Sequence[tuple[int, ...]], trier: Trier, begin: float) -> SweepReport:
        every = tuple(range(len(next(iter(replays.values())).cases)))
        settings: list[Setting] = []
        total = (1 + len(sides)) * self._plan().trials
        with self._progress.track("sweep", total=total, unit="trials") as advance:
            for number, side in enumerate(sides):
                tune = tuple(index for index in every if index not in set(side))
                study = self._tuned(f"without part {number}", tune, replays, trier, advance)
                settings.append(self._best(study, tune, replays))
            self._study = self._tuned("all cases", every, replays, trier, advance)
        chosen = self._best(self._study, every, replays)
        unseen = self._unseen(replays, sides, settings) if sides else None
        finished = self._study.finished()
        return SweepReport(
            output=str(self._folder),
            space=self._space.name,
            metric=self._metric,
            setting=chosen,
            seen=Figure(len(every), self._score(replays, {}, every), self._score(replays, chosen, every)),
            unseen=unseen,
            parts={f"part {number}": setting for number, setting in enumerate(settings)},
            trials=len(finished),
            pruned=sum(trial.state.name == "PRUNED" for trial in finished),
            importance=importance_of(self._study),
            seconds=time.monotonic() - begin,
            search_ms=1000 * self._search_s / max(1, self._tried),
            cases=tuple(case.case for case in next(iter(replays.values())).cases),
            ious=self._options.ious,
            failed=self._failed,
        )

    def _tuned(
        self, name: str, cases: tuple[int, ...], replays: Replays, trier: Trier, advance: Callable[[int], None]
    ) -> SweepStudy:
        """A study of some cases, brought to its last trial."""
        storage = Journal(self._folder / JOURNAL)
        replay = next(iter(replays.values()))
        about = digest(self._about_cases, *sorted(self._contents[replay.cases[index].case] for index in cases))
        study = SweepStudy(storage, name, self._space, self._plan(), about=about)
        advance(min(len(study.finished()), self._plan().trials))
        if self._options.executor == "tune":
            from voxray.sweeping.ray_tune import tune_settings

            tune_settings(study, replays, Trials(self._space.recipe.merge, cases), advance)
            return study
        begin, waited_s = time.monotonic(), 0.0
        order = _shuffled(cases, self._options.seed)
        first = max(FIRST_LEAST, math.ceil(FIRST_SHARE * len(cases)))
        trials = Trials(self._space.recipe.merge, order, first if first < len(cases) else 0)

        def evaluate(settings: Sequence[Setting], bar: float | None) -> Sequence[TrialResult]:
            nonlocal waited_s
            called = time.monotonic()
            outcomes = trier([trials.of(setting, bar) for setting in settings])
            waited_s += time.monotonic() - called
            self._tried += len(settings)
            return outcomes

        study.run(evaluate, told=advance)
        self._search_s += time.monotonic() - begin - waited_s
        return study

    def _best(self, study: SweepStudy, cases: tuple[int, ...], replays: Replays) -> Setting:
        """Of the study's best settings the one whose gain is surest; nothing where none is sure.

        The highest score among hundreds is the luckiest, too. So the gain over the recipe's own setting is looked at
        in replicates of the cases, and what counts is how large it is in all but the worst tenth of them.
        """
        replay, how = self._merge(replays, {})
        patients = np.unique([replay.cases[index].patient for index in cases], return_inverse=True)[1]
        rng = np.random.default_rng(self._options.seed)
        weights = draw_weights(len(cases), rng=rng, num=NUM_REPLICATES, units=patients)
        own = replay.replicates(how, cases, weights)
        sure: list[tuple[float, Setting]] = []
        for setting, _ in study.best(FINALISTS):
            replay, how = self._merge(replays, setting)
            gains = replay.replicates(how, cases, weights) - own
            sure.append((float(np.nanquantile(gains, WORST_SHARE)), setting))
        gain, setting = max(sure, key=lambda one: one[0], default=(0.0, {}))
        return setting if gain > 0 else {}

    def _score(self, replays: Replays, setting: Setting, cases: tuple[int, ...]) -> float:
        replay, how = self._merge(replays, setting)
        return replay.score(how, cases)

    def _merge(self, replays: Replays, setting: Setting) -> tuple[Replay, Any]:
        inference = {name: value for name, value in setting.items() if name.startswith("inference.")}
        return replays[key(inference) if inference else self._own(replays)], self._space.merge_of(setting)

    def _own(self, replays: Replays) -> str:
        """The variant that the recipe's own setting is, or the first where it is none of them."""
        inference = self._space.recipe.model_dump(mode="json")["inference"]
        for variant in self._space.variants():
            if all(inference.get(name.split(".")[1]) == value for name, value in variant.items()):
                return key(variant)
        return next(iter(replays))

    def _unseen(self, replays: Replays, sides: Sequence[tuple[int, ...]], settings: Sequence[Setting]) -> Figure:
        """All cases pooled, each merged by the setting that was tuned without it."""
        own, own_how = self._merge(replays, {})
        merges = [self._merge(replays, setting) for setting in settings]
        of_side = {index: number for number, side in enumerate(sides) for index in side}
        trial = own.trial()
        for index in sorted(of_side):
            replay, how = merges[of_side[index]]
            trial.add(replay.cases[index], how)
        return Figure(len(of_side), own.score(own_how, sorted(of_side)), trial.score())

    def _kept(self, variant: Setting) -> list[tuple[int, RecordedCase]]:
        """The kept cases of all runs, each with the number of its run."""
        options = self._options
        found: list[tuple[int, RecordedCase]] = []
        for number, run in enumerate(self._runs):
            wanted = CaseRequest(
                run,
                dataset=options.dataset,
                root=options.root,
                workers=options.workers,
                device=options.device,
                classes=options.classes,
            )
            cases, failed = record_cases(wanted, variant, progress=self._progress)
            found += [(number, kept) for kept in cases]
            self._failed |= failed
        return found

    def _require_cases(self, cases: Sequence[tuple[int, RecordedCase]]) -> None:
        """Says which cases have no part in the sweep; an error where none has."""
        for case, why in self._failed.items():
            self._progress.say(f"case {case} has no part in the sweep: {why}")
        if not cases:
            case, why = next(iter(self._failed.items()))
            text = f"none of {len(self._failed)} cases can be swept; case {case}: {why}"
            raise DataError("sweep.nothing", text, remedy="Mend the cases, or sweep a run of another fold.")

    def _replays(self, kept: Mapping[str, Sequence[tuple[int, RecordedCase]]]) -> Replays:
        bounds = bounds_of(self._space)
        with self._progress.track("prepare", total=len(kept), unit="variants") as advance:
            replays = {}
            for variant, cases in kept.items():
                replays[variant] = Replay.of([one for _, one in cases], bounds, ious=self._options.ious)
                advance(1)
        return replays

    def _sides(self, cases: Sequence[tuple[int, RecordedCase]]) -> list[tuple[int, ...]]:
        """The parts that are scored with what was tuned on the others, by index; none where that is not wanted."""
        if not any(_has_object(one) for _, one in cases):
            raise ConfigError(
                f"{self._runs[0]}: none of its {len(cases)} cases holds anything to find; nothing to tune."
            )
        if self._options.same_cases:
            return []
        parts = parts_of([number for number, _ in cases], [one.head.patient for _, one in cases], self._options.seed)
        for part in parts:
            rest = [one for index, (_, one) in enumerate(cases) if index not in part]
            if not any(map(_has_object, rest)) or not any(_has_object(cases[index][1]) for index in part):
                raise ConfigError(
                    f"{self._runs[0]}: its {len(cases)} cases cannot be parted so that each part holds something to "
                    f"find; add folds, or tune and report on the same cases with --same-cases."
                )
        return parts

    def _plan(self) -> Plan:
        sampler: Any = self._options.sampler
        return Plan(self._options.trials or self._space.file.trials, sampler, self._options.seed)

    def _params(self, num_parts: int) -> dict[str, str]:
        found = {"space": str(self._space.path), "sampler": self._options.sampler, "parts": str(num_parts)}
        if self._space.recipe.task == "detection":
            found["ious"] = ", ".join(f"{iou:g}" for iou in self._options.ious)
        return found | {"trials": str(self._plan().trials), "seed": str(self._options.seed)}


def _shared(kept: Mapping[str, list[tuple[int, RecordedCase]]]) -> dict[str, list[tuple[int, RecordedCase]]]:
    """The cases that every variant has."""
    names = set.intersection(*({one.head.case for _, one in cases} for cases in kept.values()))
    return {variant: [one for one in cases if one[1].head.case in names] for variant, cases in kept.items()}


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


def _folder_of(run: str, space: Space) -> Path:
    path = local_path(run)
    if path is None:
        raise ConfigError(f"{run}: the run is not on this machine; say where the sweep goes, with -o DIR.")
    return path / "sweeps" / space.name


def _shuffled(cases: tuple[int, ...], seed: int) -> tuple[int, ...]:
    return tuple(cases[index] for index in np.random.default_rng(seed).permutation(len(cases)))


def _has_object(kept: RecordedCase) -> bool:
    truth = kept.truth
    return truth is not None and (len(truth.boxes) > 0 or (truth.labels is not None and bool(truth.labels.any())))

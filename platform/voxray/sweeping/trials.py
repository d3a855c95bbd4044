"""Settings tried on a replay: in this process, or as Ray tasks that share the replay through the object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from voxray.core.config import Setting
from voxray.core.progress import Progress
from voxray.core.recipe import Merge
from voxray.distributed.cluster import connect
from voxray.distributed.parallel import Shared, TaskOptions, task_map
from voxray.inference.candidates.replay import Replay
from voxray.sweeping.optuna_study import TrialResult, key
from voxray.sweeping.search_space import merge_with

Replays = Mapping[str, Replay]
"""Variant -> its replay; a variant is one answer of the network, all of the same cases."""


@dataclass(frozen=True)
class MergeTrial:
    """A merge to try on some cases; below the bar after the `first` few of them it is given up."""

    variant: str
    merge: Merge
    cases: tuple[int, ...]
    first: int = 0
    bar: float | None = None


@dataclass(frozen=True)
class MergeTrials:
    """Makes trials of settings: all that a worker needs to know of a sweep, which is nothing of the network."""

    own: Merge
    """The recipe's, which a setting changes."""
    cases: tuple[int, ...]
    first: int = 0
    """After how many cases a setting may be given up; 0 where that is never."""

    def of(self, setting: Setting, bar: float | None = None) -> MergeTrial:
        """The trial of a setting."""
        return MergeTrial(variant_of(setting), merge_with(self.own, setting), self.cases, self.first, bar)


def variant_of(setting: Setting) -> str:
    """The variant whose candidates a setting merges."""
    return key({name: value for name, value in setting.items() if name.startswith("inference.")})


class TrialRunner(Protocol):
    """Runs trials."""

    def __call__(self, trials: Sequence[MergeTrial]) -> Sequence[TrialResult]:
        """What each comes to."""
        ...


def run_trial(replays: Replays, one: MergeTrial) -> TrialResult:
    """What a setting comes to."""
    replay = replays[one.variant]
    trial, first = replay.trial(), float("nan")
    for number, index in enumerate(one.cases, start=1):
        trial.add(replay.cases[index], one.merge)
        if number == one.first:
            first = trial.score()
            if one.bar is not None and first < one.bar:
                return TrialResult(first, first, pruned=True)
    return TrialResult(trial.score(), first)


@contextmanager
def open_runner(
    replays: Replays, *, workers: int, on_ray: bool, progress: Progress | None = None
) -> Iterator[TrialRunner]:
    """Runs trials on Ray with one CPU each, or one after another here; what they wait for is said to `progress`."""
    if not on_ray:
        yield lambda trials: [run_trial(replays, one) for one in trials]
        return
    with connect(num_cpus=None):
        work: Shared[Callable[[tuple[int, MergeTrial]], TrialResult]] = Shared(partial(_run_numbered, replays))
        options = TaskOptions(at_once=workers)

        def every(trials: Sequence[MergeTrial]) -> Sequence[TrialResult]:
            results = task_map(work, list(enumerate(trials)), options, progress=progress)
            found = {number: result for (number, _), result in results}
            return [found[number] for number in range(len(trials))]

        yield every


def _run_numbered(replays: Replays, numbered: tuple[int, MergeTrial]) -> TrialResult:
    torch.set_num_threads(1)
    return run_trial(replays, numbered[1])

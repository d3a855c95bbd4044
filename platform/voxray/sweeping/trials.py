"""Settings tried on a replay: in this process, or as Ray tasks that share the replay through the object store."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from voxray.core.config import Setting
from voxray.core.recipe import Merge
from voxray.distributed.cluster import connect
from voxray.inference.candidates.replay import Replay
from voxray.sweeping.search_space import merge_with
from voxray.sweeping.study import TrialResult, key

Replays = Mapping[str, Replay]
"""Variant -> its replay; a variant is one answer of the network, all of the same cases."""


@dataclass(frozen=True)
class Try:
    """A merge to try on some cases; below the bar after the `first` few of them it is given up."""

    variant: str
    how: Merge
    cases: tuple[int, ...]
    first: int = 0
    bar: float | None = None


@dataclass(frozen=True)
class Trials:
    """Makes tries of settings: all that a worker needs to know of a sweep, which is nothing of the network."""

    own: Merge
    """The recipe's, which a setting changes."""
    cases: tuple[int, ...]
    first: int = 0
    """After how many cases a setting may be given up; 0 where that is never."""

    def of(self, setting: Setting, bar: float | None = None) -> Try:
        """A setting's try."""
        return Try(variant_of(setting), merge_with(self.own, setting), self.cases, self.first, bar)


def variant_of(setting: Setting) -> str:
    """The variant whose candidates a setting merges."""
    return key({name: value for name, value in setting.items() if name.startswith("inference.")})


class Trier(Protocol):
    """Tries settings."""

    def __call__(self, tries: Sequence[Try]) -> Sequence[TrialResult]:
        """What each comes to."""
        ...


def try_one(replays: Replays, one: Try) -> TrialResult:
    """What a setting comes to."""
    replay = replays[one.variant]
    trial, first = replay.trial(), float("nan")
    for number, index in enumerate(one.cases, start=1):
        trial.add(replay.cases[index], one.how)
        if number == one.first:
            first = trial.score()
            if one.bar is not None and first < one.bar:
                return TrialResult(first, first, pruned=True)
    return TrialResult(trial.score(), first)


@contextmanager
def open_trier(replays: Replays, *, workers: int, on_ray: bool) -> Iterator[Trier]:
    """Tries settings on Ray with one CPU each, or one after another here."""
    if not on_ray:
        yield lambda tries: [try_one(replays, one) for one in tries]
        return
    with connect(num_cpus=None):
        ray: Any = importlib.import_module("ray")
        held = [ray.put(replays)]
        task = ray.remote(num_cpus=1, max_retries=3)(_try_held)

        def every(tries: Sequence[Try]) -> Sequence[TrialResult]:
            found: dict[int, TrialResult] = {}
            waiting = list(enumerate(tries))
            running: dict[Any, int] = {}
            while waiting or running:
                while waiting and len(running) < workers:
                    number, one = waiting.pop(0)
                    running[task.remote(held, one)] = number
                done, _ = ray.wait(list(running))
                found |= {running.pop(ref): ray.get(ref) for ref in done}
            return [found[number] for number in range(len(tries))]

        yield every


_OPENED: dict[str, Replays] = {}


def _try_held(held: list[Any], one: Try) -> TrialResult:
    """In a worker, which opens the replay once."""
    torch.set_num_threads(1)
    name = held[0].hex()
    if name not in _OPENED:
        _OPENED.clear()
        _OPENED[name] = importlib.import_module("ray").get(held[0])
    return try_one(_OPENED[name], one)

"""An Optuna study that is asked and told in batches, kept on disk, so that an interrupted one goes on.

Batches have one size whatever the number of workers, and are told in the order in which they were asked: the same
seed gives the same settings on any cluster.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from voxray.core.config import Setting
from voxray.core.errors import ConfigError
from voxray.sweeping.journal import Journal
from voxray.sweeping.search_space import FieldValue, Space, Spread, product_size

Sampler = Literal["tpe", "grid", "greedy", "random"]
SAMPLERS: tuple[Sampler, ...] = ("tpe", "grid", "greedy", "random")

BATCH = 16
"""Settings that are proposed before any of them is judged."""
STARTUP = 20
"""Random settings before TPE proposes, and trials before any is given up early."""
_MOST_COMBINATIONS = 1_000_000
HOPELESS_PERCENT = 25.0
"""A trial that is among the worst so many percent after a few cases is given up."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to; `first` is its score after a few cases, where it was asked for."""

    score: float
    first: float = math.nan
    pruned: bool = False


Evaluate = Callable[[Sequence[Setting], float | None], Sequence[TrialResult]]
"""Outcomes of settings; those that are below the bar after a few cases may be given up."""


@dataclass(frozen=True)
class Plan:
    """How a study proceeds."""

    trials: int
    sampler: Sampler = "tpe"
    seed: int = 0


class SweepStudy:
    """One study of a storage, over one space and one choice of cases."""

    def __init__(self, journal: Journal, name: str, space: Space, plan: Plan, *, about: str) -> None:
        self.space, self.plan, self.name, self.journal = space, plan, name, journal
        self._is_systematic = False
        self.distributions = {
            field: distribution(spread, whole=field in space.whole) for field, spread in space.fields.items()
        }
        import optuna

        with quiet():
            self.storage = optuna.storages.JournalStorage(journal)  # type: ignore[arg-type]
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, direction="maximize", load_if_exists=True
            )
            _require_same(self.study, space, about)
            self._give_up_unfinished()
            self.study.sampler = _sampler(plan, already=len(self.study.trials))
            journal.flush()

    def run(self, evaluate: Evaluate, *, on_batch: Callable[[int], None] = lambda _: None) -> None:
        """Makes the trials that are missing of the plan's; `on_batch` is called with how many are done."""
        with quiet():
            while missing := self.plan.trials - len(self.finished()):
                trials = self._ask(min(BATCH, missing))
                if not trials:
                    return
                outcomes = evaluate([trial.params for trial in trials], self._bar())
                for trial, outcome in zip(trials, outcomes, strict=True):
                    self._tell(trial, outcome)
                self.journal.flush()
                on_batch(len(trials))

    def finished(self) -> list[Any]:
        """The trials with a score, and those that were given up for theirs."""
        from optuna.trial import TrialState

        found: list[Any] = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return found

    def best(self, most: int = 1) -> list[tuple[Setting, float]]:
        """The best settings with their scores, of equal ones the first; none where no trial has a score."""
        scored = [trial for trial in self.finished() if trial.state.name == "COMPLETE"]
        scored.sort(key=lambda trial: (-trial.value, trial.number))
        return [(dict(trial.params), float(trial.value)) for trial in scored[:most]]

    def _ask(self, count: int) -> list[Any]:
        """The next trials; TPE begins with what the greedy search tries, where that leaves it half of its trials."""
        known = {key(trial.params): _score(trial) for trial in self.finished()}
        present = None if known else self.space.present()
        settings: list[Setting] = [present] if present is not None and self.plan.sampler in ("tpe", "random") else []
        systematic = self.plan.sampler in ("grid", "greedy")
        if self.plan.sampler == "grid":
            settings = list(itertools.islice(_grid(self, known), count))
        elif self.plan.sampler == "greedy" or (self.plan.sampler == "tpe" and self._can_be_greedy):
            missing = next_greedy(self.space, known)
            systematic = systematic or bool(missing)
            settings = [*settings, *missing][:count]
        self._is_systematic = systematic
        for setting in settings:
            self.study.enqueue_trial(dict(setting))
        return [self.study.ask(self.distributions) for _ in range(len(settings) if systematic else count)]

    @property
    def _can_be_greedy(self) -> bool:
        return 2 * sum(len(set(spread.values())) for spread in self.space.fields.values()) <= self.plan.trials

    def _tell(self, trial: Any, outcome: TrialResult) -> None:
        from optuna.trial import TrialState

        if math.isfinite(outcome.first):
            trial.report(outcome.first, step=0)
        if outcome.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            assert math.isfinite(outcome.score), "cases without anything to find were to be refused before"
            self.study.tell(trial, outcome.score)

    def _bar(self) -> float | None:
        """The score after a few cases below which a trial is hopeless."""
        if self._is_systematic:
            return None
        first = [trial.intermediate_values[0] for trial in self.finished() if trial.intermediate_values]
        return float(np.percentile(first, HOPELESS_PERCENT)) if len(first) >= STARTUP else None

    def _give_up_unfinished(self) -> None:
        """Trials that were under way when the sweep was stopped are made again, under other numbers."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            self.study.tell(trial.number, state=TrialState.FAIL)


def distribution(spread: Spread, *, whole: bool) -> Any:
    """The values as Optuna knows them."""
    from optuna import distributions as kinds

    if spread.choices is not None:
        return kinds.CategoricalDistribution(spread.choices)
    low, high = spread.low, spread.high
    assert low is not None
    assert high is not None
    if whole:
        return kinds.IntDistribution(int(low), int(high), log=spread.log, step=int(spread.step or 1))
    return kinds.FloatDistribution(float(low), float(high), log=spread.log, step=spread.step)


def next_greedy(space: Space, known: Mapping[str, float]) -> list[Setting]:
    """What nnDetection's order tries next: one field after another, the best value of each kept.

    `known` holds the scores so far by `key`; the answer is empty when every field has been tried.
    """
    best: dict[str, FieldValue] = dict(
        space.present() or {field: spread.values()[0] for field, spread in space.fields.items()}
    )
    for field, spread in space.fields.items():
        settings: list[Setting] = [{**best, field: value} for value in dict.fromkeys(spread.values())]
        missing = [setting for setting in settings if key(setting) not in known]
        if missing:
            return missing
        chosen: Setting = max(settings, key=lambda setting: known[key(setting)])
        best.update(chosen)
    return []


def key(setting: Setting) -> str:
    """Equal for equal settings."""
    return json.dumps(dict(setting), sort_keys=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings of what is experimental, and its log."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Fixed parameter", category=UserWarning)
        warnings.filterwarnings("ignore", message="Choices for a categorical", category=UserWarning)
        yield


def _grid(study: SweepStudy, known: Mapping[str, float]) -> Iterator[Setting]:
    """Combinations that have not been tried, in an order that spreads a part of them over the whole."""
    values = [spread.values() for spread in study.space.fields.values()]
    total = product_size(values)
    if total > _MOST_COMBINATIONS:
        raise ConfigError(
            f"{study.space.path}: a grid of {total} combinations is too large; give fewer values, or --sampler tpe."
        )
    every = list(itertools.product(*values))
    for index in np.random.default_rng(study.plan.seed).permutation(total):
        setting = dict(zip(study.space.fields, every[index], strict=True))
        if key(setting) not in known:
            yield setting


def _sampler(plan: Plan, *, already: int) -> Any:
    """One that does not repeat what it proposed before an interruption."""
    from optuna.samplers import RandomSampler, TPESampler

    seed = plan.seed + already
    if plan.sampler != "tpe":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, multivariate=True, group=False, constant_liar=True, n_startup_trials=STARTUP)


def _require_same(study: Any, space: Space, about: str) -> None:
    """A ConfigError where the study is of another space, or of other answers."""
    asked = {"space": space.digest, "about": about}
    known = {name: study.user_attrs.get(name) for name in asked}
    if known["space"] is None:
        for name, value in asked.items():
            study.set_user_attr(name, value)
        study.set_user_attr("fields", list(space.fields))
    elif known != asked:
        others = "another network, other cases, scans or truth, or other IoUs"
        what = "another space" if known["space"] != space.digest else others
        raise ConfigError(
            f"{space.path}: the study that was begun is of {what} (fields {', '.join(study.user_attrs['fields'])}); "
            f"sweep into another folder with --out, or delete that of the study."
        )


def _score(trial: Any) -> float:
    return float(trial.value) if trial.state.name == "COMPLETE" else -math.inf

"""Trainings side by side on one Ray cluster: each is driven by a task of its own, as its command would drive it.

Nobody waits for what another holds: every training takes its part of the cluster, and no more start than fit.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from voxray.core.errors import ResourceError, VoxrayError
from voxray.core.progress import Advance, Progress, SilentProgress
from voxray.core.recipe import Recipe
from voxray.distributed.mlflow_run import prepare_tracking
from voxray.distributed.mlflow_server import tracking_uri
from voxray.distributed.placement_groups import give_back_rooms, rooms
from voxray.distributed.run_follower import POLL_S, epoch_line
from voxray.distributed.training import TrainOptions, own_interrupt, train
from voxray.training.checkpoint import find_state
from voxray.training.run_files import HISTORY, read_news

GRACE_S = 30.0
"""How long a training that is stopped may take to say so to MLflow."""
MAX_RETRIES = 3
"""How often a training is taken up again whose driving process died, as with its node."""


@dataclass(frozen=True)
class TrainingTask:
    """One training, small enough to travel."""

    name: str
    store: str
    recipe: Recipe
    location: str
    options: TrainOptions
    environment: Mapping[str, str] = field(default_factory=dict)
    """Where its driver finds MLflow."""


def train_side_by_side(trainings: Sequence[TrainingTask], *, at_once: int, progress: Progress) -> None:
    """Brings all to their last epoch, so many at once; the first that fails stops the others, which can go on later.

    Ray must have been joined or started.
    """
    ray: Any = importlib.import_module("ray")
    waiting, running = deque(trainings), dict[Any, TrainingTask]()
    for uri in {tracking_uri(one.location) for one in trainings}:
        prepare_tracking(uri)
    epochs = sum(one.recipe.optim.epochs - _epochs_done(one) for one in trainings)
    listener, before = _Listener(trainings, progress), rooms()
    with progress.track("train", total=epochs, unit="epochs") as advance, own_interrupt():
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    one = waiting.popleft()
                    running[_started(ray, one)] = one
                ready, _ = ray.wait(list(running), timeout=POLL_S)
                listener.look(advance)
                for reference in ready:
                    one = running.pop(reference)
                    _ended(ray, reference)
                    progress.say(f"{one.name}: finished")
        except BaseException:
            _stop(ray, list(running))
            give_back_rooms(but=before)
            raise
        listener.look(advance)


def drive(one: TrainingTask) -> None:
    """Runs in a process of its own: the training, from its start or from its last checkpoint."""
    os.environ.update(one.environment)
    train(one.store, one.recipe, one.location, one.options, progress=SilentProgress())


class _Listener:
    """Reads what the trainings leave in their folders, and says what is new."""

    def __init__(self, trainings: Sequence[TrainingTask], progress: Progress) -> None:
        self._trainings, self._progress = trainings, progress
        self._told = {one.name: _epochs_done(one) for one in trainings}

    def look(self, advance: Advance) -> None:
        """Passes on what has come since the last look."""
        for one in self._trainings:
            try:
                news = read_news(one.location, HISTORY) or ()
            except ResourceError:
                continue  # it is read again in a moment
            for row in news:
                if row["epoch"] > self._told[one.name]:
                    self._told[one.name] = int(row["epoch"])
                    self._progress.say(f"{one.name}: {epoch_line(row)}")
                    advance(1)


def _started(ray: Any, one: TrainingTask) -> Any:
    """The reference of the task that drives the training, on this node: here MLflow's file is."""
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # It only waits for the training's workers: with a CPU of its own it could keep one from them.
    remote = ray.remote(num_cpus=0, max_retries=MAX_RETRIES, scheduling_strategy=here)(drive)
    environment = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = tracking_uri(one.location)
    sent = TrainingTask(one.name, one.store, one.recipe, one.location, one.options, environment)
    return remote.remote(sent)


def _ended(ray: Any, reference: Any) -> None:
    """Raises what a training failed from as itself, not as Ray wraps it."""
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VoxrayError):
            raise error.cause from error
        raise


def _stop(ray: Any, references: Sequence[Any]) -> None:
    """As Ctrl-C would, and by force where that does not help."""
    for reference in references:
        ray.cancel(reference)
    _, left = ray.wait(references, num_returns=len(references), timeout=GRACE_S) if references else ((), ())
    for reference in left:
        with suppress(Exception):
            ray.cancel(reference, force=True)


def _epochs_done(one: TrainingTask) -> int:
    state = find_state(one.location)
    return state.epochs_done if state else 0

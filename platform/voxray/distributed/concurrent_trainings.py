"""Trainings side by side on one Ray cluster: each is driven by a task of its own, as its command would drive it.

Nobody waits for what another holds: every training takes its part of the cluster, and no more start than fit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

from voxray.core.errors import ResourceError
from voxray.core.progress import Advance, Progress, SilentProgress
from voxray.core.recipe import Recipe
from voxray.distributed.mlflow_run import prepare_tracking
from voxray.distributed.mlflow_server import tracking_uri
from voxray.distributed.parallel import TaskOptions, task_map
from voxray.distributed.placement_groups import give_back_rooms, rooms
from voxray.distributed.run_follower import epoch_line
from voxray.distributed.stopping import grace_s, own_interrupt
from voxray.distributed.training import TrainOptions, train
from voxray.training.checkpoint import find_state
from voxray.training.run_files import HISTORY, read_progress_file

GRACE_S = 10.0
"""How long a training that is stopped may take to say so to MLflow, once its checkpoint is written."""


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
    for uri in {tracking_uri(one.location) for one in trainings}:
        prepare_tracking(uri)
    epochs = sum(one.recipe.optim.epochs - _epochs_done(one) for one in trainings)
    listener, before = _Listener(trainings, progress), rooms()
    with progress.track("train", total=epochs, unit="epochs") as advance, own_interrupt():
        sent, look = [_tracked(one) for one in trainings], partial(listener.look, advance)
        try:
            with closing(task_map(drive, sent, _options(at_once), tick=look)) as finished:
                for one, _ in finished:
                    progress.say(f"{one.name}: finished")
        except BaseException:
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
                news = read_progress_file(one.location, HISTORY) or ()
            except ResourceError:
                continue  # it is read again in a moment
            for row in news:
                if row["epoch"] > self._told[one.name]:
                    self._told[one.name] = int(row["epoch"])
                    self._progress.say(f"{one.name}: {epoch_line(row)}")
                    advance(1)


def _tracked(one: TrainingTask) -> TrainingTask:
    """The training with what its driver finds MLflow by."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    return replace(one, environment={**environment, "MLFLOW_TRACKING_URI": tracking_uri(one.location)})


def _options(at_once: int) -> TaskOptions:
    """Of tasks on this node, where MLflow's file is, that only wait for a training's workers.

    With a CPU of its own such a task could keep one from them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return TaskOptions(num_cpus=0, at_once=at_once, scheduling=here, grace_s=grace_s() + GRACE_S)


def _epochs_done(one: TrainingTask) -> int:
    state = find_state(one.location)
    return state.epochs_done if state else 0

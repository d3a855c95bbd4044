"""What one training worker does: its share of the patches, of validation, and on rank 0 the checkpoints.

It goes on from the run folder's last checkpoint, whoever started it and for whatever reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from voxray.core.batch import PatchBatch
from voxray.core.config import parse
from voxray.core.errors import DataError, ResourceError, VoxrayError
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.distributed.patch_stream import patch_stream
from voxray.distributed.placement_groups import note_room
from voxray.distributed.training_metrics import recorded_checkpoint, recorded_ticks
from voxray.distributed.validation import Validator
from voxray.inference.candidates.folder import candidates_folder, forget_candidates
from voxray.sampling import Schedule, default_steps
from voxray.store import Contents, PatchSource, Store, read_batches
from voxray.tasks import build_task
from voxray.training.checkpoint import find_state, read_trainer, read_weights, recipe_of
from voxray.training.collective import Collective
from voxray.training.loop import EpochRecord, Surroundings, fit
from voxray.training.run_files import RunWriter, read_failure, write_failure
from voxray.training.state import TrainingState


@dataclass(frozen=True)
class TrainJob:
    """What is to be trained, small enough to travel."""

    run: Run
    store: str
    location: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"run": self.run.model_dump(mode="json"), "store": self.store, "location": self.location}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> TrainJob:
        """The inverse of `to_dict`."""
        return TrainJob(parse(Run, data["run"], where="run"), data["store"], data["location"])


class OpenStream(Protocol):
    """One rank's batches of some epochs, one after another."""

    def __call__(
        self,
        store: Store,
        recipe: Recipe,
        case_ids: Sequence[str],
        *,
        schedule: Schedule,
        epochs: range,
        rank: int = 0,
    ) -> Iterator[PatchBatch]:
        """The stream; it has a `close`."""
        ...


def train_on_ray(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    import ray.train
    import ray.train.torch

    job, context = TrainJob.from_dict(config), ray.train.get_context()
    for place in (job.location, job.store):
        Place.of(place).trust()  # it has answered the driver
    if read_failure(job.location) is not None:
        return
    if context.get_world_rank() == 0:
        note_room(job.location)
    collective = Collective(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    share_cores(context.get_local_world_size(), most=config.get("max_threads"))

    def report(record: EpochRecord) -> None:
        if record.validated:
            ray.train.report(record.row())

    stream = partial(patch_stream, local_world_size=context.get_local_world_size())
    guarded(job, partial(work, job, collective, open_stream=stream, report=report))


def train_here(job: TrainJob) -> None:
    """The same in this process, without Ray."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    guarded(job, partial(work, job, Collective(device=device), open_stream=read_here))


def work(
    job: TrainJob,
    collective: Collective,
    *,
    open_stream: OpenStream,
    report: Callable[[EpochRecord], None] = lambda _: None,
) -> None:
    """Trains to the last epoch."""
    store, run = Store.open(job.store), job.run
    _require_data(store, run)
    recipe = recipe_of(run)
    task = build_task(recipe, run.classes)
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    training = TrainingState(recipe.network.build(recipe, len(run.classes)), recipe.optim, collective.device)
    resume(training, job.location)
    schedule = schedule_of(recipe, run, collective.world_size)
    validator = Validator(
        store,
        run,
        recipe,
        case_ids=run.val_cases[: recipe.optim.validate_cases],
        collective=collective,
        folder=lambda: candidates_folder(job.location, training.epochs_done + 1),
    )
    writer = RunWriter(
        job.location,
        run,
        metric=task.primary_metric,
        num_epochs=recipe.optim.epochs,
        rank=collective.rank,
        picture=lambda: validator.picture,
    )

    def save(training: TrainingState, record: EpochRecord) -> None:
        with recorded_checkpoint(run.name, training, rank=collective.rank):
            writer.save(training, record)
        if record.validated and collective.rank == 0:
            forget_candidates(job.location, but=record.epoch)
        report(record)

    epochs = range(training.epochs_done, recipe.optim.epochs)
    patches: Any = open_stream(store, recipe, run.train_cases, schedule=schedule, epochs=epochs, rank=collective.rank)
    with closing(patches) as stream:
        around = Surroundings(
            batches=lambda _: stream,
            num_steps=schedule.steps_per_epoch,
            validate=validator if run.val_cases else None,
            save=save,
            tick=recorded_ticks(run.name, collective.rank, writer.tick),
        )
        fit(training, task=task, recipe=recipe, around=around, collective=collective, seed=run.seed)


def resume(training: TrainingState, location: str) -> None:
    """Goes on from the last checkpoint of the run's folder, if there is one."""
    state = find_state(location)
    if state is None:
        return
    trainer = read_trainer(location)
    if trainer is None:
        raise DataError(
            "run.no_trainer",
            f"{location}: its last checkpoint has no trainer.pt.",
            remedy="Copy the whole run from where it was trained, or train into another folder.",
        )
    training.restore(read_weights(location, f"checkpoints/{state.last}"), trainer)


def _require_data(store: Store, run: Run) -> None:
    """A worker that is started again must not go on with a store that was remade meanwhile."""
    if run.data and run.data[-1].digest != Contents.of(store.manifest).digest:
        raise DataError(
            "store.changed",
            f"{store.uri} was changed while it was trained on.",
            remedy="Run the same command again: it says which cases have changed.",
        )


def schedule_of(recipe: Recipe, run: Run, world_size: int) -> Schedule:
    """What the run draws in an epoch, over all workers."""
    return Schedule(
        seed=run.seed,
        steps_per_epoch=default_steps(recipe, len(run.train_cases), world_size),
        batch_size=recipe.optim.batch_size,
        world_size=world_size,
    )


def guarded(job: TrainJob, action: Callable[[], None]) -> None:
    """Runs it; an error that a user can mend is left for the driver in the run's folder."""
    try:
        action()
    except torch.OutOfMemoryError as error:
        needed = ResourceError(
            f"a training step does not fit into the device's memory ({str(error).splitlines()[0][:150]}); lower "
            f"optim.batch_size or patch.size_vox."
        )
        write_failure(job.location, needed)
        raise needed from error
    except VoxrayError as error:
        write_failure(job.location, error)
        raise


def share_cores(num_workers: int, *, most: int | None = None) -> None:
    """Gives torch this worker's part of the machine's cores, or `most` threads; Ray would give it one thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // num_workers)
    torch.set_num_threads(threads if most is None else min(threads, most))


def read_here(
    store: Store, recipe: Recipe, case_ids: Sequence[str], *, schedule: Schedule, epochs: range, rank: int = 0
) -> Iterator[PatchBatch]:
    """The batches that `patch_stream` gives, read in this process while the network waits."""
    yield from read_batches(PatchSource.of(store, recipe, case_ids, schedule), epochs, rank=rank)

"""What one training worker does: its share of the patches, of validation, and on rank 0 the checkpoints.

It goes on from the run folder's last checkpoint, whoever started it and for whatever reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Protocol

import torch

from voxray.core.batch import PatchBatch
from voxray.core.config import parse
from voxray.core.errors import DataError, ResourceError, VoxrayError
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.distributed.draining import DrainWatch
from voxray.distributed.patch_stream import patch_stream
from voxray.distributed.placement_groups import note_room
from voxray.distributed.stopping import LocalStop, RayStopListener
from voxray.distributed.training_metrics import checkpoint_written, recorded_ticks
from voxray.distributed.validation import Validator
from voxray.inference.candidates.folder import candidates_folder, forget_candidates
from voxray.sampling import Schedule, default_steps
from voxray.store import Contents, PatchSource, Store, read_batches
from voxray.tasks import build_task
from voxray.training.checkpoint import newest_intact, read_checkpoint, recipe_of
from voxray.training.collective import Collective
from voxray.training.loop import EpochRecord, StoppedError, Surroundings, fit
from voxray.training.run_files import RunWriter, SaveRules, read_failure, write_failure
from voxray.training.state import TrainingState


@dataclass(frozen=True)
class TrainJob:
    """What is to be trained, small enough to travel."""

    run: Run
    store: str
    location: str
    checkpoint_s: float | None = None
    """Seconds between checkpoints within an epoch; None: only at the ends of epochs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.__dict__, "run": self.run.model_dump(mode="json")}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> TrainJob:
        """The inverse of `to_dict`; what else is there is left alone."""
        names = [one.name for one in fields(TrainJob)]
        return TrainJob(**{**{name: data[name] for name in names}, "run": parse(Run, data["run"], where="run")})


class OpenStream(Protocol):
    """One rank's batches of some epochs, one step after another."""

    def __call__(
        self,
        store: Store,
        recipe: Recipe,
        case_ids: Sequence[str],
        *,
        schedule: Schedule,
        epochs: range,
        slots: Sequence[int] = (0,),
        start_step: int = 0,
    ) -> Iterator[PatchBatch]:
        """The stream, step by step, of the first epoch without its first `start_step` steps; it has a `close`."""
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
    rank, device = context.get_world_rank(), ray.train.torch.get_device()
    collective = Collective(rank, context.get_world_size(), device, job.run.num_slots or 0)
    share_cores(context.get_local_world_size(), most=config.get("max_threads"))

    def report(record: EpochRecord) -> None:
        if record.validated:
            ray.train.report(record.row())

    stream = partial(patch_stream, local_world_size=context.get_local_world_size())
    with _asked(config.get("stop_request"), collective) as rules:
        guarded(job, partial(work, job, collective, open_stream=stream, report=report, rules=rules))


@contextmanager
def _asked(actor: Any, collective: Collective) -> Iterator[SaveRules]:
    """Rank 0 heeds what the driver asks for, and nodes that will be taken away."""
    import ray

    nodes = collective.gather(ray.get_runtime_context().get_node_id())
    if nodes is None or actor is None:
        with suppress(StoppedError):
            yield SaveRules()
        return
    listener, drains = RayStopListener(actor), DrainWatch(nodes)
    try:
        yield SaveRules(stop=listener.wanted, urgent=drains)
    except StoppedError as stopped:
        listener.tell(str(stopped))
    finally:
        listener.close()
        drains.close()


def train_here(job: TrainJob, line: LocalStop | None = None) -> None:
    """The same in this process, without Ray."""
    device, line = torch.device("cuda" if torch.cuda.is_available() else "cpu"), line or LocalStop()
    rules, collective = SaveRules(stop=line.wanted), Collective(device=device, num_slots=job.run.num_slots or 0)
    try:
        guarded(job, partial(work, job, collective, open_stream=read_here, rules=rules))
    except StoppedError as stopped:
        line.tell(str(stopped))


def work(
    job: TrainJob,
    collective: Collective,
    *,
    open_stream: OpenStream,
    report: Callable[[EpochRecord], None] = lambda _: None,
    rules: SaveRules | None = None,
) -> None:
    """Trains to the last epoch, or to where it is asked to stop: then a StoppedError, once that is saved."""
    store, run = Store.open(job.store), job.run
    _require_data(store, run)
    recipe = recipe_of(run)
    task = build_task(recipe, run.classes)
    torch.manual_seed(run.seed)
    torch.backends.cudnn.benchmark = True
    training = TrainingState(recipe.network.build(recipe, len(run.classes)), recipe.optim, collective.device)
    schedule = schedule_of(recipe, run)
    warning = resume(training, job.location, collective, steps_per_epoch=schedule.steps_per_epoch)
    validator = Validator(
        store,
        run,
        recipe,
        case_ids=run.val_cases[: recipe.optim.validate_cases],
        collective=collective,
        folder=lambda: candidates_folder(job.location, training.epochs_done + 1),
    )
    rules = replace(rules or SaveRules(), every_s=job.checkpoint_s)
    writer = RunWriter(
        job.location,
        run,
        metric=task.primary_metric,
        num_epochs=recipe.optim.epochs,
        rank=collective.rank,
        picture=lambda: validator.picture,
        rules=rules,
        written=partial(checkpoint_written, run.name),
    )
    if warning:
        writer.note(warning, training)
    validator.between = partial(_stop_between, writer)

    def save(training: TrainingState, record: EpochRecord) -> None:
        forget = partial(forget_candidates, job.location, but=record.epoch) if record.validated else _nothing
        writer.save(training, record, forget)
        report(record)

    epochs, start = range(training.epochs_done, recipe.optim.epochs), training.steps_done
    opened = partial(open_stream, store, recipe, run.train_cases, schedule=schedule, epochs=epochs)
    patches: Any = opened(slots=collective.slots, start_step=start)
    with writer, closing(patches) as stream:
        around = Surroundings(
            batches=lambda _: stream,
            num_steps=schedule.steps_per_epoch,
            validate=validator if run.val_cases else None,
            save=save,
            tick=recorded_ticks(run.name, collective.rank, writer.tick),
            after_step=lambda now: writer.after_step(now, schedule.steps_per_epoch),
            interrupted=writer.heed_stop,
        )
        fit(training, task=task, recipe=recipe, around=around, collective=collective, seed=run.seed)


def _stop_between(writer: RunWriter) -> None:
    if writer.is_to_stop():
        raise StoppedError


def _nothing() -> None:
    pass


def resume(
    training: TrainingState, location: str, collective: Collective | None = None, *, steps_per_epoch: int = 0
) -> str:
    """Goes on from the newest intact checkpoint of the run's folder, if there is one.

    Rank 0 chooses it. What is to be said where it is not the last one; empty otherwise, and on other ranks.
    """
    collective = collective or Collective()
    found = newest_intact(location, steps_per_epoch) if collective.rank == 0 else None
    name = collective.broadcast(found.name if found else None)
    if name is None:
        return ""
    found = found or read_checkpoint(location, name)
    training.restore(found.weights, found.trainer)
    return found.warning


def _require_data(store: Store, run: Run) -> None:
    """A worker that is started again must not go on with a store that was remade meanwhile."""
    if run.data and run.data[-1].digest != Contents.of(store.manifest).digest:
        raise DataError(
            "store.changed",
            f"{store.uri} was changed while it was trained on.",
            remedy="Run the same command again: it says which cases have changed.",
        )


def schedule_of(recipe: Recipe, run: Run) -> Schedule:
    """What the run draws in an epoch, over all workers."""
    num_slots = run.num_slots or 1
    return Schedule(
        seed=run.seed,
        steps_per_epoch=default_steps(recipe, len(run.train_cases), num_slots),
        batch_size=recipe.optim.batch_size,
        num_slots=num_slots,
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
    store: Store,
    recipe: Recipe,
    case_ids: Sequence[str],
    *,
    schedule: Schedule,
    epochs: range,
    slots: Sequence[int] = (0,),
    start_step: int = 0,
) -> Iterator[PatchBatch]:
    """The batches that `patch_stream` gives, read in this process while the network waits."""
    yield from read_batches(
        PatchSource.of(store, recipe, case_ids, schedule), epochs, slots=slots, start_step=start_step
    )

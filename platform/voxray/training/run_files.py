"""What a training leaves in its run's folder while it works, besides checkpoints; the driver reads it from there.

RUN/history.json           one row of numbers per epoch
RUN/ticker.json            where the current epoch is and how busy rank 0's machine is, a few seconds old
RUN/waits.json             what its driver said last that the training waits for
RUN/pictures/epoch_0005.png   a validation case with its answer
RUN/failure.json           why the workers stopped, where a user can mend it

A training is not ended by any of these: what cannot be written is written again later, or not at all.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from voxray.core.errors import ConfigError, DataError, ResourceError, StorageAwayError, VoxrayError
from voxray.core.run import Run
from voxray.core.storage import Location, Place
from voxray.training.checkpoint import Checkpoint, write_checkpoint
from voxray.training.loop import EpochRecord, Tick
from voxray.training.machine_load import machine_load
from voxray.training.state import TrainingState

HISTORY, TICKER, FAILURE, WAITS = "history.json", "ticker.json", "failure.json", "waits.json"

_TICK_EVERY_S = 5.0
_KINDS: dict[str, type[VoxrayError]] = {
    "ConfigError": ConfigError,
    "ResourceError": ResourceError,
    "StorageAwayError": StorageAwayError,
}


class RunWriter:
    """Writes a run's checkpoints, history, progress and pictures on rank 0; on other ranks nothing is written."""

    def __init__(
        self,
        location: Location,
        run: Run,
        *,
        metric: str,
        num_epochs: int,
        rank: int,
        picture: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        """`picture` is asked for after a validation."""
        self._location, self._folder, self._run = location, Place.of(location), run
        self._metric, self._num_epochs, self._writes = metric, num_epochs, rank == 0
        self._picture, self._ticked_s = picture, 0.0
        self._ticking = threading.Thread()

    def save(self, training: TrainingState, record: EpochRecord) -> None:
        """Writes an epoch's checkpoint, history and picture."""
        if not self._writes:
            return
        checkpoint = Checkpoint(
            run=self._run,
            weights=training.weights(),
            epochs_done=training.epochs_done,
            trainer=training.trainer(),
            metric=self._metric,
            value=record.metrics.get(self._metric),
            finished=training.epochs_done >= self._num_epochs,
        )
        picture = self._picture() if record.validated else None
        if picture is not None:
            self._folder.offer(f"pictures/epoch_{record.epoch:04d}.png", picture)
        write_checkpoint(self._location, checkpoint)
        self._folder.offer(HISTORY, json.dumps(training.history).encode())  # the next epoch's has all rows again

    def tick(self, tick: Tick) -> None:
        """Writes where the epoch is, every few seconds; elsewhere than on a disk beside the training."""
        now = time.monotonic()
        if not self._writes or now - self._ticked_s < _TICK_EVERY_S or self._ticking.is_alive():
            return
        self._ticked_s, data = now, json.dumps({**tick.__dict__, "system": machine_load()}).encode()
        if self._folder.is_local:
            self._folder.offer(TICKER, data)
            return
        self._ticking = threading.Thread(target=self._folder.offer, args=(TICKER, data), name="ticker", daemon=True)
        self._ticking.start()


def write_failure(location: Location, error: VoxrayError) -> None:
    """Leaves an error for the driver; workers that are started again see it and stop at once."""
    fields: dict[str, Any] = {"kind": type(error).__name__, "text": str(error)}
    if isinstance(error, DataError):
        fields |= {"code": error.code, "text": error.message, "remedy": error.remedy, "case_id": error.case_id}
    folder, data = Place.of(location), json.dumps(fields).encode()
    if isinstance(error, StorageAwayError):
        folder.offer(FAILURE, data)  # it has been waited for already
    else:
        folder.write(FAILURE, data)


def read_failure(location: Location) -> VoxrayError | None:
    """The error that workers left, if any."""
    folder = Place.of(location)
    if not folder.exists(FAILURE):
        return None
    fields = json.loads(folder.read(FAILURE))
    if fields["kind"] == "DataError":
        return DataError(fields["code"], fields["text"], remedy=fields["remedy"], case_id=fields["case_id"])
    return _KINDS.get(fields["kind"], VoxrayError)(fields["text"])


def clear_failure(location: Location) -> None:
    """Forgets it."""
    folder = Place.of(location)
    if folder.exists(FAILURE):
        folder.remove(FAILURE)


def read_progress_file(location: Location, name: str) -> Any:
    """`HISTORY` or `TICKER` as it is now; None where it has not been written. Storage is asked once."""
    try:
        return json.loads(Place.of(location).once().read(name))
    except FileNotFoundError:
        return None

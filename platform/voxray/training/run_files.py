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
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from voxray.core.errors import ConfigError, DataError, ResourceError, StorageAwayError, VoxrayError
from voxray.core.run import Run
from voxray.core.storage import Location, Place
from voxray.training.background import Background
from voxray.training.checkpoint import Checkpoint, write_checkpoint
from voxray.training.loop import EpochRecord, StoppedError
from voxray.training.machine_load import machine_load
from voxray.training.meter import Tick
from voxray.training.state import TrainingState, on_host

HISTORY, TICKER, FAILURE, WAITS = "history.json", "ticker.json", "failure.json", "waits.json"

_TICK_EVERY_S = 5.0
_KINDS: dict[str, type[VoxrayError]] = {
    "ConfigError": ConfigError,
    "ResourceError": ResourceError,
    "StorageAwayError": StorageAwayError,
}


@dataclass(frozen=True)
class SaveRules:
    """When a checkpoint is written within an epoch; each is asked between two steps on rank 0."""

    every_s: float | None = None
    """Seconds since the checkpoint before; None: only at the ends of epochs."""
    stop: Callable[[], bool] = lambda: False
    """Whether training is to end once it is saved."""
    urgent: Callable[[], str] = lambda: ""
    """Why one is to be written at once, such as a node that will be taken away; said once."""


class RunWriter:
    """Writes a run's checkpoints, history, progress and pictures on rank 0; on other ranks nothing is written.

    A checkpoint is copied in the host's memory and written beside the training, one at a time. What fails there ends
    the training at its next step.
    """

    def __init__(  # noqa: PLR0913
        self,
        location: Location,
        run: Run,
        *,
        metric: str,
        num_epochs: int,
        rank: int,
        picture: Callable[[], bytes | None] = lambda: None,
        rules: SaveRules | None = None,
        written: Callable[[float, Checkpoint], None] = lambda *_: None,
    ) -> None:
        """`picture` is asked for after a validation; `written` is told of each checkpoint and its seconds."""
        self._location, self._folder, self._run = location, Place.of(location), run
        self._metric, self._num_epochs, self._writes = metric, num_epochs, rank == 0
        self._picture, self._rules, self._written = picture, rules or SaveRules(), written
        self._ticking, self._ticked_s, self._notice = threading.Thread(), 0.0, ""
        self._background, self._saved_s = Background(), time.monotonic()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Waits for the checkpoint under way, except where a second Ctrl-C says not to."""
        if error is None:
            self._background.wait()
        elif isinstance(error, Exception):
            with suppress(Exception):  # the first error is the one to be told
                self._background.wait()

    def save(self, training: TrainingState, record: EpochRecord, then: Callable[[], None] = lambda: None) -> None:
        """Writes an epoch's checkpoint, history and picture; `then` is called once they are there."""
        if not self._writes:
            return
        picture, history = self._picture() if record.validated else None, json.dumps(training.history).encode()

        def written() -> None:
            self._folder.offer(HISTORY, history)  # the next epoch's has all rows again
            then()

        def before() -> None:
            if picture is not None:
                self._folder.offer(f"pictures/epoch_{record.epoch:04d}.png", picture)

        self._start(training, value=record.metrics.get(self._metric), before=before, then=written)

    def after_step(self, training: TrainingState, num_steps: int) -> None:
        """Saves within an epoch where that is due or asked for; a StoppedError where training is to end."""
        if not self._writes:
            return
        self._background.check()
        self.heed_stop(training)
        reason = self._rules.urgent()
        if reason:
            self._start(training)
            self.note(f"{reason}: a checkpoint is written after {_where(training)}.", training)
        elif training.steps_done < num_steps and self._is_due() and not self._background.is_busy:
            self._start(training)

    def heed_stop(self, training: TrainingState) -> None:
        """Saves and raises a StoppedError where training is to end."""
        if not self._writes or not self._rules.stop():
            return
        self._start(training)
        self._background.wait()
        raise StoppedError(_where(training))

    def is_to_stop(self) -> bool:
        """Whether training is to end, for what takes long between two steps."""
        return self._writes and self._rules.stop()

    def tick(self, tick: Tick) -> None:
        """Writes where the epoch is, every few seconds; elsewhere than on a disk beside the training."""
        now = time.monotonic()
        if not self._writes or now - self._ticked_s < _TICK_EVERY_S or self._ticking.is_alive():
            return
        fields = {**tick.__dict__, "system": machine_load(), "notice": self._notice}
        self._ticked_s, data = now, json.dumps(fields).encode()
        if self._folder.is_local:
            self._folder.offer(TICKER, data)
            return
        self._ticking = threading.Thread(target=self._folder.offer, args=(TICKER, data), name="ticker", daemon=True)
        self._ticking.start()

    def note(self, text: str, training: TrainingState) -> None:
        """Something that the user is to be told; it travels with the progress."""
        self._notice, self._ticked_s = text, 0.0
        if self._ticking.is_alive():
            self._ticking.join()
        self.tick(Tick(training.epochs_done + 1, training.num_steps, math.nan, 0.0))

    def _is_due(self) -> bool:
        every_s = self._rules.every_s
        return every_s is not None and time.monotonic() - self._saved_s >= every_s

    def _start(
        self,
        training: TrainingState,
        *,
        value: float | None = None,
        before: Callable[[], None] = lambda: None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        begin = time.perf_counter()
        self._background.wait()
        checkpoint = Checkpoint(
            run=self._run,
            weights=on_host(training.weights()),
            epochs_done=training.epochs_done,
            trainer=on_host(training.trainer()),
            metric=self._metric,
            value=value,
            finished=training.epochs_done >= self._num_epochs,
            steps_done=training.steps_done,
        )

        def write() -> None:
            begin = time.perf_counter()
            before()
            write_checkpoint(self._location, checkpoint)
            self._written(time.perf_counter() - begin, checkpoint)
            then()

        self._background.start(write)
        self._saved_s = time.monotonic()
        training.checkpoint_s += time.perf_counter() - begin
        training.num_checkpoints += 1


def _where(training: TrainingState) -> str:
    return f"epoch {training.epochs_done + 1}, step {training.steps_done}"


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


def forget_earlier_start(location: Location) -> None:
    """Forgets it, and where an earlier training was."""
    folder = Place.of(location)
    for name in (FAILURE, TICKER):
        if folder.exists(name):
            folder.remove(name)


def read_progress_file(location: Location, name: str) -> Any:
    """`HISTORY` or `TICKER` as it is now; None where it has not been written. Storage is asked once."""
    try:
        return json.loads(Place.of(location).once().read(name))
    except FileNotFoundError:
        return None

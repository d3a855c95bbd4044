"""Follows a training from its run's folder: how far it is for the user, its numbers and pictures for MLflow."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from voxray.core.errors import ResourceError
from voxray.core.progress import Advance, Progress
from voxray.core.storage import Location, Place
from voxray.distributed.mlflow_run import Tracking
from voxray.results.pictures import draw_curves
from voxray.training.run_files import HISTORY, TICKER, WAITS, read_progress_file

POLL_S = 1.0

_OF_STEPS = ("loss", "samples_per_s", "wait_share", "step_s")

_Row = Mapping[str, float]


class Follower:
    """Reads what is new and passes it on; `look` may be called at any time, by one thread at a time."""

    def __init__(
        self, location: Location, tracking: Tracking, progress: Progress, *, num_steps: int, steps_done: int
    ) -> None:
        self._location, self._tracking, self._progress = location, tracking, progress
        self._num_steps, self._steps_done = num_steps, steps_done
        self._last_epoch = tracking.last_epoch()
        self._told_epoch = steps_done // max(num_steps, 1)
        self._last_tick, self._is_away, self._notice = 0, False, ""
        self.history: Sequence[_Row] = ()

    def look(self, advance: Advance) -> None:
        """Passes on what has come since the last look; where the folder's storage does not answer, that is said."""
        try:
            self._look(advance)
        except ResourceError as error:
            if not self._is_away:
                self._progress.say(f"{error} The training goes on meanwhile; its checkpoints wait for ten minutes.")
            self._is_away = True
            return
        if self._is_away:
            self._progress.say(f"{Place.of(self._location).uri}: answers again.")
        self._is_away = False

    def _look(self, advance: Advance) -> None:
        tick: Any = read_progress_file(self._location, TICKER)
        self._note(tick)
        if tick and tick["steps_done"] > self._last_tick and tick["samples_per_s"]:
            self._last_tick = tick["steps_done"]
            self._tracking.log_row(_numbers(tick), step=self._last_tick)
            self._reach(self._last_tick, advance)
        self.history = read_progress_file(self._location, HISTORY) or ()
        for row in self.history:
            self._pass_on(row, advance)

    def _note(self, tick: Mapping[str, Any] | None) -> None:
        """What rank 0 has to say, once."""
        notice = str((tick or {}).get("notice", ""))
        if notice and notice != self._notice:
            self._progress.say(notice)
        self._notice = notice

    def draw_curves(self) -> None:
        """The whole history as a picture for MLflow."""
        if self.history:
            self._tracking.log_file("curves.png", draw_curves(_series(self.history)))

    def _pass_on(self, row: _Row, advance: Advance) -> None:
        epoch = int(row["epoch"])
        if epoch > self._told_epoch:
            self._told_epoch = epoch
            self._reach(epoch * self._num_steps, advance)
            self._progress.say(epoch_line(row))
        if epoch > self._last_epoch:
            self._last_epoch = epoch
            self._tracking.log_row(row, step=epoch)
            if any(name.startswith("val/") for name in row):
                self._send_picture(epoch)
                self.draw_curves()

    def _send_picture(self, epoch: int) -> None:
        name, folder = f"pictures/epoch_{epoch:04d}.png", Place.of(self._location).once()
        if folder.exists(name):
            self._tracking.log_file(name, folder.read(name))

    @property
    def steps_done(self) -> int:
        """The optimizer steps that the training has told of."""
        return self._last_tick

    def _reach(self, steps_done: int, advance: Advance) -> None:
        """A training that was started again from a checkpoint is behind for a while."""
        if steps_done > self._steps_done:
            advance(steps_done - self._steps_done)
            self._steps_done = steps_done


@contextmanager
def following(follower: Follower, advance: Advance, *, every_s: float = POLL_S) -> Iterator[None]:
    """Looks again and again in a thread while the block runs, and once at its end."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every_s):
            follower.look(advance)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        follower.look(advance)


class NotesWaits:
    """A progress whose lines, on what a training waits for, are left in the run's folder, too."""

    def __init__(self, progress: Progress, location: Location) -> None:
        self._progress, self._location = progress, location

    def track(self, name: str, *, total: float | None, unit: str = "") -> AbstractContextManager[Advance]:
        """That of the progress."""
        return self._progress.track(name, total=total, unit=unit)

    def say(self, line: str) -> None:
        """The line, for who is here and for who asks with ``voxray status``."""
        self._progress.say(line)
        Place.of(self._location).offer(WAITS, json.dumps({"text": line}).encode())


def epoch_line(row: _Row) -> str:
    """``epoch 12: loss 0.431, 8.3 patches/s, 1 % waiting, mAP 0.52``."""
    parts = [
        f"loss {row.get('loss/total', math.nan):.4g}",
        f"{row['samples_per_s']:.1f} patches/s",
        f"{row['wait_share']:.0%} waiting".replace("%", " %"),
    ]
    if row["num_skipped"]:
        parts.append(f"{row['num_skipped']:.0f} steps skipped")
    shown = {name.removeprefix("val/"): value for name, value in row.items() if name.startswith("val/")}
    parts += [f"{name} {value:.3f}" for name, value in shown.items() if "/" not in name]
    return f"epoch {row['epoch']:.0f}: {', '.join(parts)}"


def _numbers(tick: Mapping[str, Any]) -> _Row:
    """What MLflow gets of a tick: the step's numbers, and rank 0's machine as its system metrics."""
    steps = {f"step/{name}": float(tick[name]) for name in _OF_STEPS if name in tick}
    return steps | {f"system/{name}": float(value) for name, value in tick.get("system", {}).items()}


def _series(history: Sequence[_Row]) -> dict[str, list[tuple[float, float]]]:
    """One series per number, without what is not worth a curve."""
    names = {name for row in history for name in row} - {"epoch", "num_skipped"}
    every = {
        name: [(row["epoch"], row[name]) for row in history if name in row and math.isfinite(row[name])]
        for name in sorted(names)
        if name.count("/") < 2
    }
    return {name: points for name, points in every.items() if points}
